"""Write the model card of an exported run, which a model hub shows. Imports no torch."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from vae_lab import config
from vae_lab.config.text import code, markdown, visible
from vae_lab.results import CONFIG, RESULT, WEIGHTS, Result, figures

CARD = "README.md"
FIGURES = {"reconstructions": "reconstructions.png", "samples": "samples.png"}
FILES = {
    "encoder.onnx": "images → {outputs} of the posterior, for ONNX Runtime",
    "decoder.onnx": "z → images, for ONNX Runtime",
    "encoder.pt2": "images → {outputs} of the posterior, for `torch.export.load`",
    "decoder.pt2": "z → images, for `torch.export.load`",
    WEIGHTS: f"the weights, which `vae_lab.load` puts into the model of `{CONFIG}`",
}
"""The files of an export, and their descriptions on the card."""

STANDARD = "vae_lab.StandardPrior"
OTHER_PRIOR = """
# Samples: the prior is not N(0, I). Draw z of it with vae_lab: vae_lab.load(".").draw(16, torch.Generator())"""

SHOWN = (
    "test.total", "test.reconstruction", "test.kl", "test.elbo", "test.iwae_10", "test.iwae_100", "test.bits_per_dim",
    "test.mse", "test.psnr", "test.ssim", "test.fid_reconstructions", "test.fid_samples", "test.probe_accuracy",
    "test.active_units",
)  # fmt: skip
"""Figures that a card shows."""
DIRECTIONS = {"lower": "; the smaller the better", "higher": "; the larger the better", None: ""}

PARTS = ("encoder", "latent", "posterior", "prior", "decoder", "likelihood", "objective")

DATA_LICENCES = {
    "torchvision.datasets.FashionMNIST": "Fashion-MNIST is © 2017 Zalando SE, under the MIT licence.",
    "torchvision.datasets.KMNIST": "KMNIST is by the ROIS-DS Center for Open Data in the Humanities, CC BY-SA 4.0.",
}


class Facts(NamedTuple):
    """The contents of a card."""

    result: Result
    settings: Mapping[str, Any]
    image_shape: Sequence[int]
    latent_shape: Sequence[int]
    files: Sequence[str]
    pictures: Sequence[str]
    license: str
    outputs: Sequence[str] = ("mean", "log_variance")
    """Outputs of the exported encoder."""


def card(facts: Facts) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    result = facts.result
    title = f"{code(f'{result.encoder}–{result.decoder}')}, a variational autoencoder"
    parts = [
        f"---\n{yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {title}",
        _summary(facts),
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
    return visible("\n\n".join(part for part in parts if part), keep="\n") + "\n"


def front_matter(facts: Facts) -> dict[str, Any]:
    """The front matter for model hubs: licence, tags, library, and test figures."""
    name, images = f"{facts.result.encoder}-{facts.result.decoder}", _data_set(facts)
    shown = [(key, value) for key, value in _figures(facts) if key.startswith("test.")]
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
        "metrics": [key.partition(".")[2] for key, _ in shown],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "unconditional-image-generation"},
                        "dataset": {"name": images, "type": _hub_name(images), "split": "test"},
                        "metrics": [
                            {"type": key.partition(".")[2], "name": figures.find(key).label, "value": value}
                            for key, value in shown
                        ],
                    }
                ],
            }
        ],
    }  # fmt: skip


def _hub_name(name: str) -> str:
    """The name of a data set in the spelling of hubs: `FashionMNIST` is `fashion_mnist`."""
    return re.sub(r"\W+", "-", re.sub("(?<=[a-z])(?=[A-Z])", "_", name)).lower()


def _summary(facts: Facts) -> str:
    channels, height, width = facts.image_shape
    return (
        f"A variational autoencoder (Kingma & Welling 2014) of images of {height} × {width} pixels, "
        f"{channels} channel{'s' if channels > 1 else ''}, with {math.prod(facts.latent_shape)} latent "
        f"dimensions; {_parts(facts)}. Its encoder gives {sentence(facts.outputs)} of the posterior, its decoder the "
        "mean image of a latent code. Both were trained together by vae_lab, which compares such models; "
        f"this is seed {facts.result.seed} of {code(facts.result.cell)}."
    )


def _parts(facts: Facts) -> str:
    """The class names of posterior, prior and likelihood."""
    parts = ((part, facts.settings.get(part)) for part in ("posterior", "prior", "likelihood"))
    return ", ".join(f"{part} {code(str(node['_target_']))}" for part, node in parts if isinstance(node, Mapping))


def sentence(names: Sequence[str]) -> str:
    """The names of outputs as words."""
    words = [f"the {name.replace('_', '-')}" for name in names]
    return " and ".join(words)


def _pictures(facts: Facts) -> str:
    captions = {
        "reconstructions.png": "Test images above what the model makes of them",
        "samples.png": "Samples: z drawn from the prior, decoded",
    }
    return "\n\n".join(f"{captions[file]}:\n\n![{captions[file]}]({file})" for file in facts.pictures)


def _figures(facts: Facts) -> list[tuple[str, float]]:
    test = facts.result.test.model_dump()
    further = [f"test.{term}" for term in facts.result.terms if f"test.{term}" not in SHOWN]
    found = ((name, test.get(name.partition(".")[2])) for name in (*SHOWN, *further))
    return [(name, value) for name, value in found if isinstance(value, int | float)]


def _metrics(facts: Facts) -> str:
    rows = []
    for name, value in _figures(facts):
        row = figures.find(name, units=facts.result.terms)
        unit = facts.result.terms.get(name.removeprefix("test."))
        meaning = row.meaning + (f", in {unit}" if unit and unit not in row.meaning else "") + DIRECTIONS[row.better]
        rows.append(f"| {markdown(row.label)} | {value:.{row.digits}f} | {markdown(meaning)} |")
    table = "\n".join(["| | | |", "|---|---|---|", *rows])
    count = facts.settings["data"].get("num_test")
    size = facts.result.model.parameters
    return (
        f"On {f'{count:,} ' if isinstance(count, int) else ''}test images, which were used once, after training"
        f"{f'; the model has {size:,} parameters' if size else ''}. One run tells little about its architecture: "
        f"another seed has other figures. `{RESULT}` has all of them.\n\n{table}"
    )


def _loading(facts: Facts) -> list[str]:
    shape, dim = (", ".join(map(str, sides)) for sides in (facts.image_shape, facts.latent_shape))
    outputs = ", ".join(facts.outputs) + ("," if len(facts.outputs) == 1 else "")
    is_standard = facts.settings.get("prior", {}).get("_target_", STANDARD) == STANDARD
    with_onnx, with_torch = (
        (
            f"""
z = np.random.default_rng(0).standard_normal((16, {dim}), dtype=np.float32)
(samples,) = decoder.run(None, {{"z": z}})  # (16, {shape})""",
            f"""
samples = decoder(torch.randn(16, {dim}))  # (16, {shape})""",
        )
        if is_standard
        else (OTHER_PRIOR, OTHER_PRIOR)
    )
    snippets = {
        "encoder.onnx": f"""\
With ONNX Runtime (`pip install onnxruntime`), any number of images at once:

```python
import numpy as np
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder = onnxruntime.InferenceSession("decoder.onnx")

images = np.random.rand(3, {shape}).astype(np.float32)  # yours, with values in [0, 1]
{outputs} = encoder.run(None, {{"images": images}})  # mean: (3, {dim})
(reconstructions,) = decoder.run(None, {{"z": mean}})
{with_onnx}
```""",
        "encoder.pt2": f"""\
With torch alone:

```python
import torch

encoder = torch.export.load("encoder.pt2").module()
decoder = torch.export.load("decoder.pt2").module()

images = torch.rand(3, {shape})  # yours, with values in [0, 1]
{outputs} = encoder(images)  # mean: (3, {dim})
reconstructions = decoder(mean){with_torch}
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
    files = "\n".join(f"| `{file}` | {FILES[file].format(outputs=sentence(facts.outputs))} |" for file in facts.files)
    run = f"| `{CONFIG}`, `{RESULT}` | the configuration, and every figure of the run |"
    return [f"| file | |\n|---|---|\n{files}\n{run}", *found]


def _data_set(facts: Facts) -> str:
    """A name for the data set."""
    named = facts.settings["data"].get("dataset")
    text = str(named).rpartition(".")[2] if named else "a folder of images"
    return visible(text)


def _data(facts: Facts) -> str:
    data = facts.settings["data"]
    counts = [f"{data[key]:,} for {use}" for key, use in
              (("num_train", "training"), ("num_val", "validation"), ("num_test", "testing"))
              if isinstance(data.get(key), int)]  # fmt: skip
    return f"{code(_data_set(facts))}: {', '.join(counts)}. Pixels are floats in [0, 1], not shifted or scaled further."


def _configuration(facts: Facts) -> str:
    chosen = {key: facts.settings[key] for key in PARTS if key in facts.settings}
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
