"""A run folder becomes its model; a folder that is damaged or hostile does not, and none of its code is run."""

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Compose
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import Tensor, nn

import vae_lab
from vae_lab import LoadError, config, experiment, results, vae
from vae_lab.cli import config_folder
from vae_lab.config import Run

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
        assert experiment.run(run).finished
        return run.directory


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
    original.to(memory_format=torch.channels_last).eval()
    noise = torch.zeros(3, 4)
    with torch.no_grad():
        assert torch.equal(model(images, noise).reconstruction, original(images, noise).reconstruction)
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
    assert experiment.run(run).finished
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
    assert experiment.run(run).finished
    assert "encoder._target_: " in refused(run.directory)
    model = vae_lab.load(run.directory, allow=[LinearEncoder])
    assert model.encode(images).mean.shape == (3, 4)


@pytest.mark.parametrize("allow", [[nn.ReLU, 3], [math.sqrt], ["my package"], [dict], torch])
def test_what_can_be_allowed_is_told(folder: Path, allow: Any) -> None:
    with pytest.raises((LoadError, TypeError), match="allow takes torch.nn.Module classes|not iterable"):
        vae_lab.load(folder, allow=allow)


# --- Targets that are refused ------------------------------------------------------------------------------

SINGLE = {
    "function": "os.system",
    "builtin": "builtins.eval",
    "through our own import": "vae_lab.config.targets.functools.partial",
    "module of a module": "torch.nn.modules.module.torch.hub.load",
    "function of torch.nn": "torch.nn.functional.relu",
    "function of ours": "vae_lab.cli.main",
    "no module class": "vae_lab.config.Config",
    "class from elsewhere": "vae_lab.module.LightningModule",
    "talks to others": "torch.nn.parallel.DistributedDataParallel",
    "another package": "torchvision.models.resnet18",
    "almost ours": "vae_lab_evil.Block",
    "almost torch's": "torch.nnn.ReLU",
    "nothing there": "torch.nn.NoSuchLayer",
    "our package itself": "torch.nn",
    "canary": "canary.Canary",
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
    }


@pytest.mark.parametrize("place", nests(""))
@pytest.mark.parametrize("target", SINGLE.values(), ids=SINGLE)
def test_a_target_that_is_no_allowed_class_is_refused_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, place: str
) -> None:
    mark = tmp_path / "mark"
    for where in (folder, tmp_path):
        (where / "canary.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder, nests(target)[place])
    message = refused(folder)
    assert repr(target) in message
    assert "_target_" in message
    assert not mark.exists()
    assert "canary" not in sys.modules
