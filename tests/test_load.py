"""A run folder becomes its model; a folder that is damaged or hostile does not, and none of its code is run."""

import functools
import hashlib
import inspect
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Compose, at_most
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vae_lab
from vae_lab import LoadError, config, results
from vae_lab.config import Run, config_folder
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.results.figures import CATALOGUE, find
from vae_lab.training import runner

SMALL = (
    "name=small", "latent.dim=4", "data.num_train=64", "data.num_val=20", "data.num_test=20", "trainer.max_epochs=1",
    "trainer.threads=1", "callbacks=quiet", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]",
    "encoder.blocks=[{down:2},{_target_:torch.nn.Dropout2d,p:0.1},{blocks:[{down:4}]}]",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that was really trained."""
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(config_folder()), version_base="1.3"):
        patch.chdir(tmp_path_factory.mktemp("trained"))
        run = Run.of(compose("train", list(SMALL), return_hydra_config=True))
        assert runner.run(run).finished
        return run.directory


def set_checksum(folder: Path) -> None:
    """Have `result.json` tell the checksum of the weights as they are."""
    told = json.loads((folder / results.RESULT).read_text())
    told["files"] = {results.WEIGHTS: hashlib.sha256((folder / results.WEIGHTS).read_bytes()).hexdigest()}
    (folder / results.RESULT).write_text(json.dumps(told))


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(small, tmp_path / "seed-0", ignore=shutil.ignore_patterns("events*", "checkpoints")))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change what `config.yaml` says."""
    path = folder / results.CONFIG
    loaded = yaml.safe_load(path.read_text())
    changed = change(loaded)
    path.write_text(yaml.safe_dump(loaded if changed is None else changed))


def refused(folder: Path, **arguments: Any) -> str:
    with pytest.raises(LoadError) as raised:
        vae_lab.load(folder, **arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_model_is_the_one_that_was_trained(small: Path, images: Tensor) -> None:
    model = vae_lab.load(small)
    original = vae.build(config.validate(results.read_config(small) or {}))
    original.load_state_dict(load_file(small / results.WEIGHTS))
    original.eval()
    assert torch.equal(model.reconstruct(images), original.reconstruct(images))
    assert torch.equal(model.encode(images).log_variance, original.encode(images).log_variance)
    assert isinstance(model, vae_lab.VAE)
    assert not model.training
    assert model.image_shape == (1, 28, 28)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


def test_loading_leaves_the_random_stream_where_it_was(small: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    vae_lab.load(str(small))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_matched_run_has_the_widths_that_were_found(run_of: Compose, images: Tensor) -> None:
    run = run_of(*SMALL[1:], "name=matched", "match=parameters", "match.encoder=mlp", "match.decoder=mlp")
    assert runner.run(run).finished
    stored = results.read_result(run.directory)
    assert stored is not None
    model = vae_lab.load(run.directory)
    assert sum(one.numel() for one in model.parameters()) == stored.model.parameters
    assert model.reconstruct(images).shape == images.shape


# --- A class of the user's own -----------------------------------------------------------------------------


class Scaled(nn.Module):
    """A user's block, which may hold another."""

    def __init__(self, factor: float = 1.0, inner: nn.Module | None = None, kind: Any = None) -> None:
        super().__init__()
        self.factor = factor
        self.inner = nn.Identity() if inner is None else inner
        self.made = nn.Identity() if kind is None else kind()

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.inner(x)) * self.factor


class LinearEncoder(nn.Module):
    """A user's own encoder."""

    def __init__(self, image_shape: list[int], num_parameters: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_parameters))

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


OWN = f"{__name__}.Scaled"
IDENTITY = {"_target_": "torch.nn.Identity"}
INNER = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": OWN, "factor": 2.0}, IDENTITY]}


@pytest.mark.parametrize("allow", [(Scaled,), Scaled, __name__, (OWN,), [__name__, Scaled]])
def test_a_users_class_is_built_where_it_is_allowed(folder: Path, images: Tensor, allow: Any) -> None:
    expected = vae_lab.load(folder).encode(images).mean
    block = {"_target_": OWN, "factor": 0.5, "inner": INNER, "kind": {**IDENTITY, "_partial_": True}}
    edit(folder, lambda settings: settings["encoder"]["blocks"].__setitem__(1, block))
    assert f"encoder.blocks[1]._target_: '{OWN}' is neither of vae_lab nor of torch.nn" in refused(folder)
    torch.testing.assert_close(vae_lab.load(folder, allow=allow).encode(images).mean, expected)


def test_a_users_encoder_is_loaded(run_of: Compose, images: Tensor) -> None:
    keys = [f"~encoder.{key}" for key in ("activation", "normalization", "blocks")]
    words = (word for word in SMALL if not word.startswith("encoder"))
    run = run_of(*words, *keys, f"+encoder._target_={__name__}.LinearEncoder")
    assert runner.run(run).finished
    assert "encoder._target_: " in refused(run.directory)
    model = vae_lab.load(run.directory, allow=[LinearEncoder])
    assert model.encode(images).mean.shape == (3, 4)


@pytest.mark.parametrize("allow", [[nn.ReLU, 3], [math.sqrt], ["my package"], [dict], torch])
def test_the_values_that_allow_takes_are_listed(folder: Path, allow: Any) -> None:
    assert "allow takes torch.nn.Module classes and dotted names" in refused(folder, allow=allow)


# --- Targets that are refused ------------------------------------------------------------------------------

SINGLE = {
    "function": "os.system",
    "builtin": "builtins.eval",
    "through our own import": "vae_lab.config.targets.functools.partial",
    "module of a module": "torch.nn.modules.module.torch.hub.load",
    "function of torch.nn": "torch.nn.functional.relu",
    "function of ours": "vae_lab.cli.main",
    "no module class": "vae_lab.config.Config",
    "class from elsewhere": "vae_lab.training.module.LightningModule",
    "public function": "vae_lab.load",
    "public class of another kind": "vae_lab.Pictures",
    "talks to others": "torch.nn.parallel.DistributedDataParallel",
    "another package": "torchvision.models.resnet18",
    "almost ours": "vae_lab_evil.Block",
    "almost torch's": "torch.nnn.ReLU",
    "nothing there": "torch.nn.NoSuchLayer",
    "our package itself": "torch.nn",
    "canary": "canary.Canary",
    "path": "torch.nn./../canary.Canary",
    "no name": "torch.nn.ReLU ",
}


def nests(target: str) -> dict[str, Any]:
    """The places in which a target can stand."""
    node = {"_target_": target}
    return {
        "block": lambda settings: settings["encoder"]["blocks"].insert(0, node),
        "group": lambda settings: settings["decoder"]["blocks"].insert(0, {"blocks": [{"blocks": [node]}]}),
        "argument": lambda settings: settings["encoder"]["blocks"].insert(0, {**IDENTITY, "inner": node}),
        "positional": lambda settings: settings["encoder"]["blocks"].insert(
            0, {"_target_": "torch.nn.Sequential", "_args_": [[IDENTITY, {"deep": node}]]}
        ),
        "not recursive": lambda settings: settings["encoder"]["blocks"].insert(
            0, {**IDENTITY, "_recursive_": False, "inner": [{"a": {"b": node}}]}
        ),
        "partial": lambda settings: settings["encoder"]["blocks"].insert(0, {**node, "_partial_": True}),
        "encoder": lambda settings: settings.update(encoder={**node, "blocks": [{"down": 4}]}),
        "decoder of ours": lambda settings: settings["decoder"].update(node),
        "latent": lambda settings: settings.update(latent={**node, "dim": 4}),
        "posterior": lambda settings: settings.update(posterior=node),
        "prior": lambda settings: settings.update(prior=node),
        "likelihood": lambda settings: settings.update(likelihood=node, objective={"_target_": "vae_lab.Elbo"}),
    }


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once a module or class has been run that should not have been."""
    mark = tmp_path / "mark"
    home = tmp_path / "on_the_path"
    home.mkdir()
    for where in (tmp_path, home):
        (where / "canary.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setattr(Mark, "path", mark)
    yield mark
    assert "canary" not in sys.modules
    assert not mark.exists()


class Mark(nn.Module):
    """A class that no folder may have built."""

    path = Path()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()
        self.path.touch()


@pytest.mark.parametrize("place", nests(""))
@pytest.mark.parametrize("target", SINGLE.values(), ids=SINGLE)
def test_a_target_that_is_no_allowed_class_is_refused_by_name(
    folder: Path, canary: Path, target: str, place: str
) -> None:
    edit(folder, nests(target)[place])
    message = refused(folder)
    assert target in message
    assert "_target_" in message


def test_targets_outside_the_model_are_ignored(folder: Path, canary: Path, images: Tensor) -> None:
    expected = vae_lab.load(folder).reconstruct(images)

    def change(settings: dict[str, Any]) -> None:
        settings["data"] |= {"_target_": "canary.Data"}
        settings["objective"] |= {"_target_": "canary.objective"}
        settings["optimizer"] |= {"_target_": f"{__name__}.Mark"}
        settings |= {"scheduler": {"_target_": "canary.Scheduler", "_partial_": True}}
        settings |= {"logger": {"a": {"_target_": "canary.Logger"}}, "callbacks": {"b": {"_target_": "os.abort"}}}
        settings["match"] = {
            "cost": "flops",
            "references": {"encoder": {"_target_": "canary.E"}, "decoder": {"_target_": "canary.D"}},
        }
        settings["of_a_later_version"] = {"_target_": "canary.Later"}

    edit(folder, change)
    assert torch.equal(vae_lab.load(folder).reconstruct(images), expected)


def test_hydra_is_not_asked_since_it_imports_before_checking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydra.utils.instantiate", None)
    monkeypatch.setattr("hydra._internal.utils._locate", None)
    edit(
        folder,
        lambda settings: settings["encoder"]["blocks"].__setitem__(1, {"_target_": OWN, "factor": "${oc.env:HOME}"}),
    )
    with pytest.raises(LoadError, match="can't multiply|not take|must be|unsupported"):
        vae_lab.load(folder, allow=Scaled)


def test_allowing_one_name_allows_no_other_class(folder: Path, canary: Path) -> None:
    edit(folder, lambda settings: settings["encoder"]["blocks"].__setitem__(1, {"_target_": f"{__name__}.Mark"}))
    for allow in ([Scaled], [OWN], ["test_loa"], ["canary"]):
        assert f"'{__name__}.Mark' is neither of vae_lab" in refused(folder, allow=allow)


def test_an_allowed_class_may_be_named_by_any_imported_module_that_has_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = types.ModuleType("other_home")
    other.Block = Scaled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_home", other)
    edit(folder, lambda settings: settings["encoder"]["blocks"].__setitem__(1, {"_target_": "other_home.Block"}))
    vae_lab.load(folder, allow=Scaled)
    assert "which is not allowed under any other name" in refused(folder, allow="other_home")


# --- Too much of everything --------------------------------------------------------------------------------


def blocks(*given: dict[str, Any]) -> Callable[[Any], None]:
    return lambda settings: settings["encoder"].update(blocks=list(given))


def resized(group: str, **keys: Any) -> Callable[[Any], None]:
    """Another size, with the σ that belongs to it."""

    def change(settings: dict[str, Any]) -> None:
        settings[group].update(keys)
        settings["likelihood"].update(sigma="from_beta")

    return change


def torchs(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"torch.nn.{name}", **arguments}


BOMBS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "wide": (blocks({"dense": 2**20}, {"dense": 2**20}), "encoder.blocks[1]: has 1,099,513,724,928 weights"),
    "64 GiB": (
        blocks({"dense": 2**17}, {"dense": 2**17}),
        "encoder.blocks.0.1.weight is F32 (2,) in the weights, but F32 (131072, 784) in the model",
    ),
    "latent": (resized("latent", dim=2**20), "encoder.head.1.weight is F32 (8, 196) in the"),
    "too wide": (blocks({"dense": 2**30}), "encoder.blocks[0].dense: must be at most 1048576"),
    "large image": (resized("data", image_shape=[1, 2**20, 2**20]), "too large"),
    "repeats": (blocks({"dropout": 0.1, "repeat": 1000}, {"dropout": 0.1}), "must be 1000 blocks or fewer"),
    "repeats in repeats": (
        blocks({**torchs("Identity"), "inner": {**torchs("ReLU", repeat=1000), "a": torchs("ReLU", repeat=1000)}}),
        "more than 2,000 modules",
    ),
    "blocks in arguments": (
        blocks(torchs("Identity", inner={
            "_target_": "vae_lab.Encoder", "image_shape": [1, 28, 28], "num_parameters": 2,
            "blocks": [{"blocks": [{"blocks": [{"dropout": 0.1, "repeat": 1000}], "repeat": 1000}], "repeat": 1000}],
        })),
        "more than 2,000 modules",
    ),
    "layers": (
        blocks(torchs("Identity", inner=torchs("LSTM", input_size=1, hidden_size=1, num_layers=10**9))),
        "more than 2,000 modules",
    ),
    "transformer": (
        blocks(torchs("Transformer", d_model=1, nhead=1, num_encoder_layers=10**9, num_decoder_layers=-(10**9))),
        "more than 2,000 modules",
    ),
    "layers by place": (
        blocks(torchs("TransformerEncoder", _args_=[torchs("TransformerEncoderLayer", _args_=[4, 4]), 10**9])),
        "more than 2,000 modules",
    ),
    "recurrent by place": (blocks(torchs("LSTM", _args_=[1, 1, 10**9])), "must be given by their names"),
    "device": (
        blocks(torchs("Linear", in_features=2**18, out_features=2**18, device="cpu")),
        "encoder.blocks[0].device: is not for a file to choose",
    ),
    "device by place": (
        blocks(torchs("Linear", _args_=[2**18, 2**18, False, "cpu"])),
        "encoder.blocks[0].device: is not for a file to choose",
    ),
    "lazy": (
        blocks(torchs("LazyConv2d", out_channels=2**20, kernel_size=28)),
        "is missing in the weights, but (1048576, 1, 28, 28) in the model",
    ),
    "enlarged": (blocks(torchs("Upsample", scale_factor=10**6)), "encoder.blocks[0]"),
    "a long sequence": (
        blocks(torchs("Sequential", _args_=[
            torchs("Flatten", start_dim=2), torchs("LSTM", input_size=784, hidden_size=4, num_layers=400)
        ])),
        "'torch.nn.Sequential' makes a tuple",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_models_that_would_take_all_memory_or_time_are_refused_first(folder: Path, name: str) -> None:
    change, words = BOMBS[name]
    edit(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with at_most(calls=5_000_000):
        assert words in refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB; torch's own imports are 200 MB


HOURGLASSES = {"encdec": 4, "depth": 4, "repeat": 900}


@pytest.mark.parametrize("levels", [0, 15])
def test_a_network_of_too_many_layers_is_not_built(folder: Path, monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    monkeypatch.setattr("vae_lab.trained.loading.MOST_CALLS", 2000)
    vae_lab.load(folder)
    edit(folder, blocks(functools.reduce(lambda inner, _: {"blocks": [inner]}, range(levels), HOURGLASSES)))
    assert "the model has too many layers to be built" in refused(folder)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("arguments", [{}, {"bidirectional": True, "batch_first": True}, {"num_layers": 2}])
def test_recurrent_layers_have_their_shapes_without_being_run(
    kind: type[nn.RNNBase], arguments: dict[str, Any]
) -> None:
    layer, given = kind(3, 4, **arguments), torch.rand(5, 2, 3)
    output, states = layer(given)
    with shapes_only():
        on_meta, its_states = layer.to("meta")(given.to("meta"))
    assert on_meta.shape == output.shape
    assert on_meta.is_meta
    assert len(its_states) == len(states)


def test_a_lazy_layer_after_a_large_map_takes_no_memory(folder: Path) -> None:
    """Its weights fit, so that it is built; the map before it would have 5 billion numbers."""
    lazy, pool = torchs("LazyConv2d", out_channels=1, kernel_size=1), torchs("AdaptiveAvgPool2d", output_size=4)
    given = torchs("Sequential", _args_=[torchs("Upsample", scale_factor=1800), lazy, pool])
    edit(folder, blocks(given))
    settings = config.validate(results.read_config(folder) or {})
    torch.manual_seed(0)
    with shapes_only():
        sketch = vae.build(settings)
    weights = {name: torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in sketch.state_dict().items()}
    save_file(weights, folder / results.WEIGHTS)
    set_checksum(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = vae_lab.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


TEXTS = {
    "python object": ("name: !!python/object/apply:os.system ['touch mark']\n", "could not determine a constructor"),
    "python name": ("encoder: !!python/name:canary.Canary\n", "could not determine a constructor"),
    "python module": ("encoder: !!python/module:canary\n", "could not determine a constructor"),
    "laughs": ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghij")), "by *a"),
    "itself": ("a: &a [*a]\n", "refers to another place, by *a"),
    "deep": ("[" * 400_000, "is nested more than 100 deep"),
    "deep groups": ("".join(" " * level + f"a{level}:\n" for level in range(1000)), "is nested more than 100 deep"),
    "large": ("# " + "x" * 2**20 + "\n", "is larger than any config.yaml"),
    "no mapping": ("- 1\n", "it holds a list"),
    "empty": ("", "it holds a NoneType"),
    "no yaml": ("{a: [}", "line 1"),
    "no text": ("\x00\x01\x02", "is not a configuration that can be read"),
    "no number": ("seed: !!int ''\n", "is not a configuration that can be read"),
    "no date": ("a: 2001-99-99\n", "is not a configuration that can be read"),
    "many digits": (f"seed: {'9' * 9999}\n", "line 1 has a number of more than 100 letters"),
    "many hexadecimal digits": (f"seed: 0x{'f' * 9999}\n", "line 1 has a number of more than 100 letters"),
    "many sixtieths": (f"seed: 1{':59' * 200_000}\n", "line 1 has a number of more than 100 letters"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_that_is_not_a_plain_configuration_is_refused(folder: Path, canary: Path, name: str) -> None:
    text, words = TEXTS[name]
    (folder / results.CONFIG).write_text(text)
    assert words in refused(folder)


def test_text_of_a_file_is_not_printed_raw(folder: Path) -> None:
    edit(folder, lambda settings: settings["encoder"].update({"\x1b[2J\nnothing": "x" * 10**5}))
    message = refused(folder)
    assert "encoder.\ufffd[2J nothing: no such key" in message
    assert len(message) < 600


# --- Files -------------------------------------------------------------------------------------------------

FILES = (results.CONFIG, results.RESULT, results.WEIGHTS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling", "nothing", "unreadable"])
def test_pipes_folders_and_devices_are_not_read(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "dangling":
            path.symlink_to("nowhere")
        case "unreadable":
            path.write_bytes(b"")
            path.chmod(0)
    assert name in refused(folder)


def test_files_may_be_symbolic_links(folder: Path, tmp_path: Path, images: Tensor) -> None:
    expected = vae_lab.load(folder).reconstruct(images)
    for name in FILES:  # as the caches of model hubs have them
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    assert torch.equal(vae_lab.load(folder).reconstruct(images), expected)


class Pickled:
    """What a pickle can hold."""

    def __reduce__(self) -> Any:
        return (Mark, ())


def rewritten(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return write


def header_of(length: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:]) and None


WEIGHTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "cannot be read as safetensors"),
    "half a header": (lambda path: os.truncate(path, 20), "cannot be read as safetensors"),
    "empty": (lambda path: os.truncate(path, 0), "cannot be read as safetensors"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "cannot be read as safetensors"),
    "huge header": (header_of(2**62), "its header would be 4,611,686,018,427,387,904 bytes long"),
    "short header": (header_of(8), "cannot be read as safetensors"),
    "long header": (header_of(2**20), "cannot be read as safetensors"),
    "pickle": (lambda path: torch.save({"a": Pickled()}, path), "is damaged"),
    "missing": (
        rewritten(lambda tensors: tensors.pop("encoder.head.1.bias")),
        "encoder.head.1.bias is missing in the weights, but (8,) in the model",
    ),
    "left over": (
        rewritten(lambda tensors: tensors.update({"x\x1by": torch.zeros(3)})),
        "x\ufffdy is F32 (3,) in the weights, and is not in the model",
    ),
    "another shape": (
        rewritten(lambda tensors: tensors.update({"encoder.head.1.bias": torch.zeros(9)})),
        "encoder.head.1.bias is F32 (9,) in the weights, but F32 (8,) in the model",
    ),
    "whole numbers": (
        rewritten(lambda tensors: tensors.update({"encoder.head.1.bias": torch.zeros(8, dtype=torch.int32)})),
        "encoder.head.1.bias is I32 (8,) in the weights, but F32 (8,) in the model",
    ),
    "no numbers": (
        rewritten(lambda tensors: tensors["encoder.head.1.weight"].fill_(math.nan)),
        "encoder.head.1.weight has values that are not finite",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_damaged_or_do_not_fit_are_reported(folder: Path, canary: Path, name: str) -> None:
    change, words = WEIGHTS[name]
    change(folder / results.WEIGHTS)
    assert "its SHA-256 is not the one in result.json" in refused(folder)
    set_checksum(folder)
    message = refused(folder)
    assert words in message
    assert str(folder / results.WEIGHTS) in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision_become_32_bits(folder: Path, images: Tensor, dtype: torch.dtype) -> None:
    expected = vae_lab.load(folder).reconstruct(images)
    save_file(
        {
            name: one.to(dtype) if one.is_floating_point() else one
            for name, one in load_file(folder / results.WEIGHTS).items()
        },
        folder / results.WEIGHTS,
    )
    set_checksum(folder)
    model = vae_lab.load(folder)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.reconstruct(images), expected, atol=0.02, rtol=0)


def test_a_run_that_left_no_checksums_is_loaded(folder: Path, images: Tensor) -> None:
    expected = vae_lab.load(folder).reconstruct(images)
    told = json.loads((folder / results.RESULT).read_text())
    del told["files"]
    (folder / results.RESULT).write_text(json.dumps(told))
    assert torch.equal(vae_lab.load(folder).reconstruct(images), expected)


def test_folders_without_a_finished_run_are_reported(folder: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == f"there is no folder {tmp_path / 'nowhere'}"
    assert refused(folder / results.RESULT) == f"{folder / results.RESULT} is not a folder"
    (tmp_path / "bare").mkdir()
    assert "has no finished run: a run's folder is outputs/<name>/<cell>/seed-<n>" in refused(tmp_path / "bare")
    told = json.loads((folder / results.RESULT).read_text())
    (folder / results.RESULT).write_text(json.dumps(told | {"status": "failed", "error": "LossError: not finite"}))
    assert refused(folder).endswith("failed (LossError: not finite); there is no model of it")
    (folder / results.RESULT).write_text("{")
    assert "result.json is damaged" in refused(folder)
    (folder / results.RESULT).unlink()
    assert "has no result.json: the run did not end" in refused(folder)


@pytest.mark.parametrize("device", ["abacus", "cuda:99", 3.5, "meta:x"])
def test_a_device_that_does_not_exist_is_reported(folder: Path, device: Any) -> None:
    assert "device" in refused(folder, device=device)


# --- The best of a sweep -----------------------------------------------------------------------------------


@pytest.fixture
def sweep(small: Path, tmp_path: Path) -> Path:
    """Three finished runs, whose validation totals are 0.3, 0.1 and 0.2, and one that failed."""
    for cell, seed, total in (("a-b", 0, 0.3), ("a-b", 10, 0.1), ("c-d", 2, 0.2), ("c-d", 3, None)):
        folder = tmp_path / "sweep" / cell / f"seed-{seed}"
        shutil.copytree(small, folder, ignore=shutil.ignore_patterns("events*", "checkpoints"))
        told = json.loads((folder / results.RESULT).read_text())
        told |= {"val": {"total": total, "reconstruction": total, "kl": total}, "test": told["test"] | {"psnr": total}}
        told |= {"seed": seed, "cell": cell, "status": "finished" if total else "failed"}
        (folder / results.RESULT).write_text(json.dumps(told))
        tensors = load_file(folder / results.WEIGHTS)
        tensors["encoder.head.1.bias"] += seed
        save_file(tensors, folder / results.WEIGHTS)
        set_checksum(folder)
    return tmp_path / "sweep"


@pytest.mark.parametrize(("metric", "seed"), [("val.total", 10), ("test.psnr", 0), ("val.reconstruction", 10)])
def test_the_best_run_of_a_sweep_is_loaded(sweep: Path, images: Tensor, metric: str, seed: int) -> None:
    model = vae_lab.load(sweep, best=metric)
    expected = vae_lab.load(next(sweep.glob(f"*/seed-{seed}")))
    assert torch.equal(model.encode(images).mean, expected.encode(images).mean)
    if seed == 10:
        of_cell = vae_lab.load(sweep / "a-b", best=metric)
        assert torch.equal(of_cell.encode(images).mean, expected.encode(images).mean)


def test_totals_are_compared_across_latent_sizes_only_at_one_sigma(sweep: Path) -> None:
    edit(sweep / "a-b" / "seed-0", resized("latent", dim=9))
    assert "val.total does not mean the same in all runs: latent.dim is" in refused(sweep, best="val.total")
    for folder in sweep.glob("*/seed-*"):
        edit(folder, resized("objective", sigma=0.1))
    vae_lab.load(sweep, best="val.total")


def test_a_figure_that_cannot_choose_the_best_run_is_refused(sweep: Path) -> None:
    assert refused(sweep).endswith(
        "is the folder of 4 runs: name one of them, such as a-b/seed-0, or give best='val.total'"
    )
    assert "has 'val.totl'; did you mean 'val.total'?" in refused(sweep, best="val.totl")
    assert "best: neither less nor more of val.kl is better; did you mean 'val." in refused(sweep, best="val.kl")
    assert "has 'train.psnr'" in refused(sweep, best="train.psnr")
    run = sweep / "a-b" / "seed-0"
    assert "is the folder of one run: leave out best='val.total'" in refused(run, best="val.total")
    edit(run, lambda settings: settings["objective"].update(beta=0.5))
    assert "val.total does not mean the same in all runs: objective.beta is 0.5 in one, 0.01 in" in refused(
        sweep, best="val.total"
    )
    vae_lab.load(sweep, best="val.reconstruction")
    stored = run / results.RESULT
    units = {"total": "nats per image", "reconstruction": "nats per image", "kl": "nats per image"}
    kept = stored.read_text()
    stored.write_text(json.dumps(json.loads(kept) | {"terms": units}))
    assert "its unit is 'nats per image' in one, 'squared error per pixel' in another" in refused(
        sweep, best="val.reconstruction"
    )
    stored.write_text(json.dumps(json.loads(kept) | {"nats": "binary"}))
    assert "the data of the likelihood is 'binary' in one, 'real' in another" in refused(sweep, best="test.elbo")
    stored.write_text(kept)
    edit(run, lambda settings: settings["data"].update(image_shape=[1, 27, 28]))
    assert "data.image_shape[1] is 27 in one, 28 in another" in refused(sweep, best="val.reconstruction")
    for result in sweep.glob("*/*/result.json"):
        result.write_text("{}")
    assert "has no finished run" in refused(sweep, best="val.total")


def test_which_way_a_figure_is_better() -> None:
    names = ("total", "iwae_10", "iwae_5000", "kl")
    assert [find(f"test.{name}").better for name in names] == ["lower", "higher", "higher", None]
    assert not {name for name, row in CATALOGUE.items() if name.startswith("model.") and row.better}


# --- Altered at random -------------------------------------------------------------------------------------

TARGETS: list[Any] = [
    {"_target_": "canary.Canary"}, {"_target_": f"{__name__}.Mark"}, {"_target_": "os.abort"},
    {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "canary.Canary"}]},
    {"_target_": "torch.nn.Dropout2d", "p": {"_target_": f"{__name__}.Mark"}},
    {"_target_": "torch.nn.ReLU"}, {"_target_": "torch.nn.Linear", "_args_": [{}]},
    {"_target_": "vae_lab.latent.Gaussian", "dim": 4}, {"_target_": "vae_lab.StandardPrior"},
    {"_target_": "vae_lab.GaussianLikelihood", "sigma": 0.1, "link": "identity"},
]  # fmt: skip
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2**20, 2**62, 1.5, math.nan, "", "x", "relu", "${oc.env:HOME}", "a" * 2000, [], {}, [[]],
    {"_target_": None}, {"_target_": ["torch.nn.ReLU"]}, {"_partial_": True}, {"down": 2}, {"dense": 2**20},
    "canary.Canary", f"{__name__}.Mark", "torch.nn.ReLU", "vae_lab.Encoder",
]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree of lists and mappings: what holds it, and its key there."""
    found = []
    for key, one in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += [(tree, key), *places(one)]
    return found


PARTS = ["encoder", "latent", "posterior", "prior", "decoder", "likelihood"]


def alter_tree(text: str, random: Random) -> str:
    tree = yaml.safe_load(text)
    for _ in range(random.choice([1, 1, 2])):
        holder, key = random.choice(places({side: tree[side] for side in random.choice([[*tree], PARTS])}))
        value = random.choice([random.choice(HOSTILE), random.choice(TARGETS)])
        match random.randrange(4), holder:
            case 0, _:
                del holder[key]
            case 1, dict():
                holder[random.choice(["_target_", "_args_", "_partial_", "_recursive_", "device", "p", "repeat"])] = (
                    value
                )
            case 2, list():
                holder.insert(key, value)
            case _:
                holder[key] = value
    return yaml.safe_dump(tree, sort_keys=False)


def alter_bytes(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    match random.randrange(4):
        case 0:
            return content[: random.randrange(len(content))]
        case 1:
            for _ in range(random.choice([1, 3, 30])):
                changed[random.randrange(len(changed))] = random.randrange(256)
        case 2:
            changed[random.randrange(min(2000, len(changed)))] ^= 1 << random.randrange(8)
        case _:
            start, length = random.randrange(len(content)), random.randrange(1, 200)
            changed[start : start + length] = content[random.randrange(len(content)) :][:length]
    return bytes(changed)


@pytest.mark.parametrize("ten", range(20))
def test_an_altered_folder_is_refused_or_loaded_right(
    folder: Path, canary: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, ten: int
) -> None:
    """200 folders: the outputs of what is loaded are those that its files say, and no code was run."""
    monkeypatch.chdir(folder)
    original = {name: (folder / name).read_bytes() for name in FILES}
    as_it_was = vae_lab.load(folder).reconstruct(images)
    whole = yaml.safe_load(original[results.CONFIG])
    built = {side: whole[side] for side in (*PARTS, "data")}
    for case in range(10 * ten, 10 * ten + 10):
        random = Random(case)
        for name, content in original.items():
            (folder / name).write_bytes(content)
        name = random.choice([results.CONFIG, results.CONFIG, *FILES])
        if name == results.CONFIG and random.random() < 0.7:
            (folder / name).write_text(alter_tree(original[name].decode(), random))
        else:
            (folder / name).write_bytes(alter_bytes(original[name], random))
        own_sum = random.random() < 0.5
        if own_sum and name == results.WEIGHTS:  # what an attacker would not forget
            set_checksum(folder)
        try:
            model = vae_lab.load(folder)
        except LoadError:
            continue
        finally:
            assert not canary.exists(), case
        settings = yaml.safe_load((folder / results.CONFIG).read_bytes())
        expected = as_it_was
        if any(settings.get(side) != built[side] for side in built) or own_sum:
            rebuilt = vae.build(config.validate({key: settings[key] for key in whole if key in settings})).eval()
            rebuilt.load_state_dict(load_file(folder / results.WEIGHTS))
            if rebuilt.image_shape != (1, 28, 28):
                assert model.image_shape == rebuilt.image_shape
                continue
            expected = rebuilt.reconstruct(images)
        torch.testing.assert_close(model.reconstruct(images), expected, msg=str(case))


# --- The guide ---------------------------------------------------------------------------------------------

GUIDE = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_examples_of_the_guide_work(
    small: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: sys.modules.pop("my_package", None))
    (tmp_path / "my_package.py").write_text("from torch import nn\n\nclass Block(nn.Identity):\n    pass\n")
    for name in ("study", "mine"):
        run = tmp_path / "outputs" / name / "vanilla-vanilla" / "seed-0"
        shutil.copytree(small, run)
        np.savez(run / "pictures.npz", originals=(255 * torch.rand(10, 1, 28, 28)).byte().numpy())
    edit(run, lambda settings: settings["encoder"]["blocks"].__setitem__(1, {"_target_": "my_package.Block"}))
    message = refused(run).partition("'my_package.Block' ")[2]
    names: dict[str, Any] = {"train_images": torch.rand(30, 1, 28, 28)}
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(code, names)
    assert names["codes"].shape == (10, 4)
    assert names["rows"].shape == (4, 9, 1, 28, 28)
    assert {path.name for path in tmp_path.glob("*.png")} == {"samples.png", "walk.png", "traversal.png"}
    assert message.replace("my_package", "their_package") in " ".join(GUIDE.split())


def test_the_guide_has_every_method_with_its_arguments() -> None:
    for name in ("encode", "decode", "reconstruct", "sample", "interpolate", "traverse"):
        parameters = list(inspect.signature(getattr(vae.VAE, name)).parameters.values())[1:]
        told = ", ".join(
            f"{one.name}={one.default}" if one.default is not one.empty else one.name for one in parameters
        )
        assert f"| `{name}({told})` |" in GUIDE


# --- Imports -----------------------------------------------------------------------------------------------


def test_importing_and_loading_import_no_more_than_they_need(folder: Path) -> None:
    edit(folder, lambda settings: settings["encoder"]["blocks"].__setitem__(1, {"dropout": 0.1}))  # a word of ours
    code = f"""
import sys
import vae_lab
packages = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
assert packages <= {{"vae_lab", "__main__", "sitecustomize", "usercustomize", *sys.argv[1:]}}, packages
assert {{"load", "VAE", "LoadError"}} <= set(dir(vae_lab))
vae_lab.load({str(folder)!r})
print(*{{"lightning", "torchvision", "matplotlib", "pandas", "scipy"}} & set(sys.modules))
"""
    at_start = subprocess.run(
        [sys.executable, "-c", "import sys; print(*{name.partition('.')[0] for name in sys.modules})"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *at_start.stdout.split()], check=False, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vae_lab' has no attribute 'nonsense'"):
        vae_lab.nonsense  # noqa: B018
