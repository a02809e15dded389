"""A user's code sees contiguous tensors; shared weights are stored; a file that cannot be written loses no run."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import vae_lab
from vae_lab import Objective, results
from vae_lab.config import Run
from vae_lab.model import vae
from vae_lab.model.blocks.layers import ScaledLinear
from vae_lab.model.describe import describe
from vae_lab.model.layout import channels_last
from vae_lab.model.match import check_fit
from vae_lab.model.weights import load_weights, save_weights
from vae_lab.trained import export
from vae_lab.training import plan, runner

SMALL = (
    "name=x", "data.num_train=32", "data.num_val=8", "data.num_test=8", "data.batch_size=16", "trainer.max_epochs=1",
    "trainer.threads=1", "trainer.precision=32-true", "callbacks=quiet", "logger=csv", "metrics.frechet=false",
    "encoder.blocks=[{down:4},{down:6}]", "latent.dim=4", "decoder.blocks=[{unflatten:6},{up:4},{up:4}]",
)  # fmt: skip


class ViewedEncoder(nn.Module):
    """The idiom of most tutorials."""

    def __init__(self, image_shape: list[int], num_parameters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(image_shape[0], 8, 4, stride=2, padding=1)
        self.linear = nn.Linear(8 * 14 * 14, num_parameters)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.linear(x.view(x.size(0), -1))


class Viewed(nn.Module):
    """A block that views its input and its weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(channels, channels, 3, padding=1))
        self.plain = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        size = self.plain.weight.view(len(self.plain.weight), -1).norm()
        return (self.plain(self.conv(x)) / size).view(len(x), -1).view(x.shape)


class ViewedGradient(torch.autograd.Function):
    """The identity, with a gradient that is viewed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view(len(gradient), -1).view(gradient.shape)


class Backwards(nn.Module):
    """A block with a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return ViewedGradient.apply(x)


class Twice(nn.Module):
    """A convolution and a buffer under two names each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = self.first
        self.register_buffer("mask", torch.ones(channels))
        self.register_buffer("same", self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


class Tied(Callback):
    """Gives the decoder a convolution's weights of the encoder."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.vae.decoder.blocks[1][0].weight = pl_module.vae.encoder.blocks[1][0].weight


class Watching(Callback):
    """Reads the weights."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        assert all(weight.isfinite().all() for weight in pl_module.parameters())


class Vector(Callback):
    """Looks at all weights as a vector, and at a batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        assert parameters_to_vector(pl_module.vae.parameters()).isfinite().all()
        assert batch.view(len(batch), -1).isfinite().all()


class Flat(Objective):
    """Views images, reconstructions and weights."""

    units = {"total": "levels", "reconstruction": "levels", "kl": "nats"}  # noqa: RUF012
    is_likelihood_trained = False

    def forward(self, vae: Any, images: Tensor, progress: float) -> dict[str, Tensor]:
        q, z, x = vae(images)
        reconstruction = (x.mean.view(len(images), -1) - images.view(len(images), -1)).abs().mean()
        kl = vae.divergence(q, z).nats.mean()
        weights = sum(weight.view(-1).square().sum() for weight in vae.parameters())
        return {"total": reconstruction + 1e-4 * (kl + weights), "reconstruction": reconstruction, "kl": kl}


@pytest.fixture
def trained(run_of: Compose) -> Callable[..., tuple[Run, results.Result]]:
    """Checks and trains a small run that these words change."""

    def train(*words: str) -> tuple[Run, results.Result]:
        replaced = tuple(f"{word.split('=')[0].lstrip('+~')}" for word in words)
        run = run_of(*(word for word in SMALL if not word.startswith(replaced)), *words)
        check_fit(run.config)
        runner.check(run.config)
        return run, runner.run(run)

    return train


def blocks(name: str, **arguments: Any) -> str:
    """An encoder with a block of this file between two of ours."""
    given = "".join(f",{key}:{value}" for key, value in arguments.items())
    return f"encoder.blocks=[{{down:4}},{{_target_:test_layout.{name}{given}}},{{down:6}}]"


@pytest.mark.parametrize(
    "words",
    [
        (
            "~encoder.activation", "~encoder.normalization", "~encoder.blocks",
            "+encoder._target_=test_layout.ViewedEncoder",
        ),
        (blocks("Viewed", channels=4),),
        (blocks("Backwards"),),
        ("+callbacks.vector._target_=test_layout.Vector",),
        ("objective._target_=test_layout.Flat", "~objective.beta"),
        (
            "optimizer._target_=torch.optim.LBFGS", "~optimizer.fused", "optimizer.lr=0.01", "+optimizer.max_iter=3",
            "scheduler=constant",
        ),
    ],
    ids=["encoder", "block", "gradient", "callback", "objective", "lbfgs"],
)  # fmt: skip
def test_what_passes_the_check_trains(trained: Callable[..., Any], words: tuple[str, ...]) -> None:
    _, result = trained(*words)
    assert result.finished, result.error
    assert not [text for text in result.warnings if text.startswith(results.NOT_WRITTEN)]


def test_a_callback_that_watches_changes_no_loss(trained: Callable[..., Any]) -> None:
    words = ("encoder.blocks=[{down:4},{down:8}]", "decoder.blocks=[{unflatten:8},{up:4},{up:4}]")
    _, plain = trained("name=plain", *words)
    _, watched = trained("name=watched", *words, "+callbacks.w={_target_:test_layout.Watching,changes_results:false}")
    assert (watched.train, watched.val, watched.test) == (plain.train, plain.val, plain.test)


@pytest.mark.parametrize("weights", [True, False])
def test_the_layout_of_weights_changes_no_result(run_of: Compose, weights: bool) -> None:
    settings = run_of(*SMALL, "data.image_shape=[3,28,28]").config
    torch.manual_seed(0)
    expected = vae.build(settings).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    model = channels_last(vae.build(settings), weights=weights)
    images = torch.rand(5, 3, 28, 28)
    got = model.decoder(model.encoder(images)[:, :4])
    assert torch.equal(got, expected.decoder(expected.encoder(images)[:, :4]))
    assert got.view(5, -1).shape == (5, 3 * 28 * 28)
    assert model.encoder.blocks[1][0].weight.is_contiguous() is not weights


# --- Shared weights ----------------------------------------------------------------------------------------


def test_a_module_under_two_names_is_stored_once_loaded_and_exported(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    run, result = trained(blocks("Twice", channels=4))
    assert result.finished, result.error
    stored = load_file(run.directory / results.WEIGHTS)
    assert len([name for name in stored if ".first." in name or ".second." in name]) == 2
    model = vae_lab.load(run.directory, allow=["test_layout"])
    assert result.model.parameters == sum(weight.numel() for weight in model.parameters())
    assert describe(run.config).parameters == result.model.parameters
    block = model.encoder.blocks[1]
    assert torch.equal(block.second.weight, stored["encoder.blocks.1.first.weight"])
    exported = export.export(run.directory, ["safetensors", "torch_export"], tmp_path / "e", allow=["test_layout"])
    assert (exported.folder / results.WEIGHTS).exists()


def test_weights_that_a_callback_ties_are_loaded_into_a_model_without_it(trained: Callable[..., Any]) -> None:
    run, result = trained("+callbacks.tied._target_=test_layout.Tied", "encoder.blocks=[{down:4},{down:6}]")
    assert result.finished, result.error
    model = vae_lab.load(run.directory)
    assert torch.equal(model.decoder.blocks[1][0].weight, model.encoder.blocks[1][0].weight)
    again = vae.build(run.config)
    load_weights(again, run.directory / results.WEIGHTS)
    assert torch.equal(again.decoder.blocks[1][0].weight, model.encoder.blocks[1][0].weight)


@pytest.mark.parametrize("view", ["transposed", "half", "empty"])
def test_views_of_one_memory_are_stored(tmp_path: Path, view: str) -> None:
    model = nn.Module()
    weight = torch.arange(12.0).reshape(4, 3)
    model.register_buffer("whole", weight)
    model.register_buffer("part", {"transposed": weight.T, "half": weight[:2], "empty": torch.empty(0)}[view])
    save_weights(model, tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert torch.equal(stored["part"], model.part)
    assert torch.equal(stored["whole"], weight)


# --- Files that cannot be written --------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "model.txt", "reconstructions.png"])
def test_a_file_that_cannot_be_written_loses_no_figure_and_comes_with_the_same_command(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    real = results.writing.replacing

    def full(path: Path) -> Any:
        if path.name == file:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path)

    words = () if file.startswith("model") else ("callbacks=default", "callbacks.pictures.images=2")
    with monkeypatch.context() as patch:
        patch.setattr(results.writing, "replacing", full)
        patch.setattr(results, "replacing", full)
        run, result = trained(*words)
    assert result.finished, result.error
    (warning,) = [text for text in result.warnings if text.startswith(results.NOT_WRITTEN)]
    assert file in warning
    assert "No space left on device" in warning
    assert plan.finished(run) is None
    assert plan.stage(run).name == "goes on"
    again = runner.run(run)
    assert again.has_its_files
    assert again.resumed == [1]
    assert again.test == result.test
    assert (run.directory / file).exists()


def test_a_run_that_fails_after_its_training_is_not_trained_again(
    trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(runner, "symptoms", lambda *_: 1 / 0)
        run, result = trained()
    assert not result.finished
    again = runner.run(run)
    assert again.finished
    assert again.resumed == [1]
    assert again.train == result.train


# --- Large images ------------------------------------------------------------------------------------------


def test_a_scaled_layer_is_stored_as_it_acts() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 2)
    torch.manual_seed(0)
    scaled = ScaledLinear(6, 2, halvings=3)
    x = torch.randn(4, 6)
    torch.testing.assert_close(scaled(x), plain(x))
    assert scaled.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in scaled.state_dict().items())
    other = ScaledLinear(6, 2, halvings=3)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.weight, scaled.weight)


@pytest.mark.parametrize(("shape", "block", "halvings"), [
    ([1, 28, 28], "{down:512}", 0), ([3, 32, 32], "{down:512}", 0), ([1, 64, 64], "{down:512}", 2),
    ([1, 64, 64], "{global_pool:avg}", 0), ([3, 224, 224], "{down:128}", 6),
])  # fmt: skip
def test_one_learning_rate_serves_all_sizes_of_images(
    run_of: Compose, shape: list[int], block: str, halvings: int
) -> None:
    settings = run_of(f"data.image_shape={shape}", f"encoder.blocks=[{block}]".replace(" ", "")).config
    with torch.device("meta"):
        head = vae.build(settings).encoder.head[1]
    assert getattr(head, "scale", 1.0) == 0.5**halvings
