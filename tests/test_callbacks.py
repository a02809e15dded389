"""The clock, the time left and the picture."""

import io
import math

import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from vae_lab import results
from vae_lab.config import Position
from vae_lab.model.likelihoods.gaussian import GaussianLikelihood
from vae_lab.model.posteriors.diagonal import DiagonalPosterior
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.vae import VAE
from vae_lab.training import callbacks, runner
from vae_lab.training.callbacks import remaining


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2


class Slow(nn.Module):
    """Takes time: 100 s for the first batch, 1 s for others in training, 1,000 s for one in evaluation."""

    clock = Clock()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            self.clock.now += 1000 if not self.training else 100 if self.clock.now == 0 else 1
        return x


@pytest.mark.parametrize("extra", ["callbacks=quiet", "+trainer.val_check_interval=2"])
def test_the_clock_counts_training_steps_alone(run_of: Compose, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    monkeypatch.setattr(Slow, "clock", Clock())
    monkeypatch.setattr(callbacks.history, "time", Slow.clock)
    blocks = f"[{{down:2}},{{_target_:{__name__}.Slow}}]"
    run = run_of(
        f"encoder.blocks={blocks}", "decoder.blocks=[{dense:2}]", "latent.dim=2", "data.num_train=50",
        "data.num_val=10", "data.num_test=10", "data.batch_size=10", "trainer.max_epochs=2", "trainer.threads=1",
        extra,
    )  # fmt: skip
    timing = runner.run(run).timing
    assert timing.first_step_seconds == 100
    assert timing.epoch_seconds == [4, 5]
    assert timing.train_seconds == 9
    assert timing.images_per_second == 10
    assert timing.cpu_share == 0.5


def test_a_record_of_an_earlier_version_has_no_share_of_the_processors() -> None:
    before = callbacks.History()
    before.epoch_seconds = [1.0, 2.0]
    old = {key: value for key, value in before.state_dict().items() if key != "epoch_cpu_seconds"}
    after = callbacks.History()
    after.load_state_dict(old)
    assert after.epoch_seconds == [1.0, 2.0]
    assert math.isnan(after.cpu_share(2))


@pytest.mark.parametrize(
    ("fraction", "position", "expected"),
    [(0.5, None, 1), (0.25, None, 3), (0.5, Position(1, 4), 7), (0.5, Position(4, 4), 1), (1.0, Position(1, 2), 1)],
)
def test_time_left_counts_the_runs_after_this_one(fraction: float, position: Position | None, expected: float) -> None:
    assert remaining(fraction, position) == pytest.approx(expected)


def test_the_bar_shows_the_terms_and_the_time_left(run_of: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(callbacks.progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr(Position, "current", classmethod(lambda cls: Position(2, 4)))
    run = run_of("trainer=debug", "+callbacks.progress.interval=0.0", "trainer.threads=1", "latent.dim=4")
    result = runner.run(run)
    assert result.finished, result.error
    shown = screen.getvalue()
    assert "run 2/4" in shown
    for word in ("epoch 1/1", "total 0.", "rec 0.", "KL ", "0:00:0", "left"):
        assert word in shown


class Flat(nn.Module):
    """An encoder that sees nothing."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 4)


class Shade(nn.Module):
    """A decoder that paints an image in one shade: the first latent number."""

    def forward(self, z: Tensor) -> Tensor:
        return z[:, :1, None, None].expand(-1, 1, 4, 4) + 0.25


def test_pictures_are_of_the_posteriors_mean_and_of_the_same_z_for_every_model() -> None:
    likelihood = GaussianLikelihood([1, 4, 4], sigma=1.0, link="identity")
    model = VAE(Flat(), DiagonalPosterior([2]), StandardPrior([2]), Shade(), likelihood)
    taken = callbacks.take_pictures(model, torch.full((3, 1, 4, 4), 0.75), samples=20)
    assert np.unique(taken.originals) == 191
    assert np.unique(taken.reconstructions) == 64
    assert taken.samples.shape == (20, 1, 4, 4)
    assert len(np.unique(taken.samples)) > 5
    torch.manual_seed(7)
    assert (callbacks.take_pictures(model, torch.zeros(1, 1, 4, 4), 20).samples == taken.samples).all()


def test_the_sheets_have_originals_above_reconstructions_and_rows_of_ten_samples(run_of: Compose) -> None:
    run = run_of("trainer=debug", "latent.dim=4", "callbacks.pictures.images=3", "callbacks.pictures.samples=15")
    assert runner.run(run).finished
    pictures = results.read_pictures(run.directory)
    with Image.open(run.directory / "reconstructions.png") as picture:
        sheet = np.asarray(picture.convert("L"))[::3, ::3]
    assert sheet.shape == (2 * 30 + 2, 3 * 30 + 2)
    assert (sheet[2:30, 2:30] == pictures["originals"][0, 0]).all()
    assert (sheet[32:60, 62:90] == pictures["reconstructions"][2, 0]).all()
    with Image.open(run.directory / "samples.png") as picture:
        assert picture.size == (3 * (10 * 30 + 2), 3 * (2 * 30 + 2))
