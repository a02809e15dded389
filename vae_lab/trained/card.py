"""The model card of an exported run: what a model hub shows of it. Imports no torch."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from vae_lab import config
from vae_lab.report.tables import metric
from vae_lab.results import CONFIG, RESULT, WEIGHTS, Result

CARD = "README.md"
FIGURES = {"reconstructions": "reconstructions.png", "samples": "samples.png"}
FILES = {
    "encoder.onnx": "images → mean and log-variance of the posterior, for ONNX Runtime",
    "decoder.onnx": "z → images, for ONNX Runtime",
    "encoder.pt2": "images → mean and log-variance of the posterior, for `torch.export.load`",
    "decoder.pt2": "z → images, for `torch.export.load`",
    WEIGHTS: f"the weights, which `vae_lab.load` puts into the model of `{CONFIG}`",
}
"""What an export may hold."""

MEANINGS = {
    "test.total": "what was minimised: reconstruction + β · KL",
    "test.reconstruction": "mean squared error a pixel, through one sample of the posterior",
    "test.kl": "nats a latent dimension, from the posterior to the prior N(0, 1)",
    "test.elbo": "evidence lower bound of an image; the larger the better",
    "test.iwae_10": "importance-weighted bound of 10 samples; the larger the better",
    "test.iwae_100": "importance-weighted bound of 100 samples; the larger the better",
    "test.bits_per_dim": "bits for each value of an image; the smaller the better",
    "test.mse": "mean squared error a pixel, through the mean of the posterior",
    "test.psnr": "peak signal-to-noise ratio of reconstructions; the larger the better",
    "test.ssim": "structural similarity of reconstructions, 1 at best",
    "test.fid_reconstructions": "Fréchet distance of reconstructions from the test images, in the features of a small "
    "Fashion-MNIST classifier, not Inception's",
    "test.fid_samples": "the same of samples of the prior",
    "test.probe_accuracy": "share of the test images whose class a linear classifier finds from the posterior means",
    "test.active_units": "latent dimensions whose posterior mean varies over the test images",
}
"""Figures of a result that a card has, and what each means."""

DATA_LICENCES = {
    "torchvision.datasets.FashionMNIST": "Fashion-MNIST is © 2017 Zalando SE, under the MIT licence.",
    "torchvision.datasets.KMNIST": "KMNIST is by the ROIS-DS Center for Open Data in the Humanities, CC BY-SA 4.0.",
}


class Facts(NamedTuple):
    """What a card tells about."""

    result: Result
    settings: Mapping[str, Any]
    image_shape: Sequence[int]
    latent_dim: int
    files: Sequence[str]
    figures: Sequence[str]
    license: str


def card(facts: Facts) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    result = facts.result
    title = f"{code(f'{result.encoder}–{result.decoder}')}, a variational autoencoder"
    parts = [
        f"---\n{yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        _what(facts),
        _pictures(facts),
        "## Figures",
        _metrics(facts),
        "## Load it",
        *_loading(facts),
        "## Data",
        _data(facts),
        "## Configuration",
        _configuration(facts),
        "## Licence",
        _licence(facts),
        "## Made with",
        _made_with(facts),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: Facts) -> dict[str, Any]:
    """What a model hub reads: licence, tags, library, and the figures of the test."""
    name, images = f"{facts.result.encoder}-{facts.result.decoder}", _data_set(facts)
    figures = [(key, value) for key, value in _figures(facts) if key.startswith("test.")]
    return {
        "license": facts.license,
        "library_name": "vae_lab" if WEIGHTS in facts.files else "onnx" if "encoder.onnx" in facts.files else "pytorch",
        "pipeline_tag": "unconditional-image-generation",
        "tags": [
            "vae",
            "variational-autoencoder",
            *(tag for tag, file in (("onnx", "encoder.onnx"), ("torch-export", "encoder.pt2"), ("safetensors", WEIGHTS))
              if file in facts.files),
        ],
        "metrics": [key.partition(".")[2] for key, _ in figures],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "unconditional-image-generation"},
                        "dataset": {"name": images, "type": _hub_name(images), "split": "test"},
                        "metrics": [
                            {"type": key.partition(".")[2], "name": metric(key).heading, "value": value}
                            for key, value in figures
                        ],
                    }
                ],
            }
        ],
    }  # fmt: skip


def _hub_name(name: str) -> str:
    """The name of a data set as hubs write it: `FashionMNIST` is `fashion_mnist`."""
    return re.sub(r"\W+", "-", re.sub("(?<=[a-z])(?=[A-Z])", "_", name)).lower()


def code(text: str) -> str:
    """Any text as it is: a stranger's cannot become markup."""
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return f"`{plain.replace('`', chr(0x2B9)).replace('|', chr(0xA6))}`"


def _what(facts: Facts) -> str:
    channels, height, width = facts.image_shape
    return (
        f"A variational autoencoder (Kingma & Welling 2014) of images of {height} × {width} pixels, "
        f"{channels} channel{'s' if channels > 1 else ''}, with {facts.latent_dim} latent "
        "dimensions and the prior N(0, I). Its encoder gives the mean and the log-variance of a Gaussian posterior, "
        "its decoder the mean image of a latent vector. Both were trained together by vae_lab, which compares such "
        "models; "
        f"this is seed {facts.result.seed} of {code(facts.result.cell)}."
    )


def _pictures(facts: Facts) -> str:
    captions = {
        "reconstructions.png": "Test images above what the model makes of them",
        "samples.png": "Samples: z drawn from the prior, decoded",
    }
    return "\n\n".join(f"{captions[file]}:\n\n![{captions[file]}]({file})" for file in facts.figures)


def _figures(facts: Facts) -> list[tuple[str, float]]:
    test = facts.result.test.model_dump()
    found = ((name, test.get(name.partition(".")[2])) for name in MEANINGS)
    return [(name, value) for name, value in found if isinstance(value, int | float)]


def _metrics(facts: Facts) -> str:
    rows = [
        f"| {metric(name).heading} | {value:.{metric(name).digits}f} | {MEANINGS[name]} |"
        for name, value in _figures(facts)
    ]
    table = "\n".join(["| | | |", "|---|---|---|", *rows])
    count = facts.settings["data"].get("num_test")
    size = facts.result.model.parameters
    return (
        f"On {f'{count:,} ' if isinstance(count, int) else ''}test images, which were used once, after training"
        f"{f'; the model has {size:,} parameters' if size else ''}. One run tells little about its architecture: "
        f"another seed has other figures. `{RESULT}` has all of them.\n\n{table}"
    )


def _loading(facts: Facts) -> list[str]:
    shape, dim = ", ".join(map(str, facts.image_shape)), facts.latent_dim
    snippets = {
        "encoder.onnx": f"""\
With ONNX Runtime (`pip install onnxruntime`), any number of images at once:

```python
import numpy as np
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder = onnxruntime.InferenceSession("decoder.onnx")

images = np.random.rand(3, {shape}).astype(np.float32)  # yours, with values in [0, 1]
mean, log_variance = encoder.run(None, {{"images": images}})  # (3, {dim}) each
(reconstructions,) = decoder.run(None, {{"z": mean}})

z = np.random.default_rng(0).standard_normal((16, {dim}), dtype=np.float32)
(samples,) = decoder.run(None, {{"z": z}})  # (16, {shape})
```""",
        "encoder.pt2": f"""\
With torch alone:

```python
import torch

encoder = torch.export.load("encoder.pt2").module()
decoder = torch.export.load("decoder.pt2").module()

images = torch.rand(3, {shape})  # yours, with values in [0, 1]
mean, log_variance = encoder(images)  # (3, {dim}) each
samples = decoder(torch.randn(16, {dim}))  # (16, {shape})
```""",
        WEIGHTS: f"""\
With vae_lab, from this folder:

```python
import vae_lab

model = vae_lab.load(".")
samples = model.sample(16, seed=0)  # (16, {shape})
```""",
    }
    found = [text for file, text in snippets.items() if file in facts.files]
    files = "\n".join(f"| `{file}` | {FILES[file]} |" for file in facts.files)
    run = f"| `{CONFIG}`, `{RESULT}` | the configuration, and every figure of the run |"
    return [f"| file | |\n|---|---|\n{files}\n{run}", *found]


def _data_set(facts: Facts) -> str:
    """A name of the images."""
    named = facts.settings["data"].get("dataset")
    text = str(named).rpartition(".")[2] if named else "a folder of images"
    return "".join(letter for letter in text if letter.isprintable())


def _data(facts: Facts) -> str:
    data = facts.settings["data"]
    counts = [f"{data[key]:,} for {use}" for key, use in
              (("num_train", "training"), ("num_val", "validation"), ("num_test", "testing"))
              if isinstance(data.get(key), int)]  # fmt: skip
    return f"{code(_data_set(facts))}: {', '.join(counts)}. Pixels are floats in [0, 1], not shifted or scaled further."


def _configuration(facts: Facts) -> str:
    chosen = {
        key: facts.settings[key] for key in ("encoder", "latent", "decoder", "objective") if key in facts.settings
    }
    flat = config.flatten(dict(facts.settings))
    rest = [f"{key} {code(str(flat[key]))}" for key in
            ("optimizer._target_", "optimizer.lr", "scheduler._target_", "trainer.max_epochs", "trainer.precision",
             "data.batch_size") if flat.get(key) is not None]  # fmt: skip
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=110).replace("```", "'''")
    return f"```yaml\n{text}```\n\n{', '.join(rest)}. All of it is in `{CONFIG}`."


def _licence(facts: Facts) -> str:
    of_data = DATA_LICENCES.get(str(facts.settings["data"].get("dataset")), "The images are under terms of their own.")
    weights = (
        "Who trained the weights decides on theirs, and has not stated one here: set `license` at the top of this file "
        "before you share it."
        if facts.license == "other"
        else f"The weights are under {code(facts.license)}."
    )
    return f"{weights} {of_data} vae_lab is under the MIT licence."


def _made_with(facts: Facts) -> str:
    made = facts.result.environment
    return (
        f"Python {code(made.python)}, torch {code(made.torch)}, lightning {code(made.lightning)}; trained on "
        f"{code(made.device)}. The configuration's checksum is `{code(facts.result.config_sha256[:16])[1:-1]}`."
    )
