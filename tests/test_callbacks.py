"""The clock, the time left and the picture."""

import io
from typing import Any

import pytest
import torch
from conftest import Compose
from rich.console import Console
from torch import Tensor, nn

from vae_lab import callbacks, experiment, vae
from vae_lab.callbacks import remaining
from vae_lab.config import Position
from vae_lab.module import LitVAE


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


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
    monkeypatch.setattr(callbacks, "time", Slow.clock)
    blocks = f"[{{down:2}},{{_target_:{__name__}.Slow}}]"
    run = run_of(
        f"encoder.blocks={blocks}", "decoder.blocks=[{dense:2}]", "latent.dim=2", "data.num_train=50",
        "data.num_val=10", "data.num_test=10", "data.batch_size=10", "trainer.max_epochs=2", "trainer.threads=1",
        extra,
    )  # fmt: skip
    timing = experiment.run(run).timing
    assert timing.first_step_seconds == 100
    assert timing.epoch_seconds == [4, 5]
    assert timing.train_seconds == 9
    assert timing.images_per_second == 10


@pytest.mark.parametrize(
    ("fraction", "position", "expected"),
    [(0.5, None, 1), (0.25, None, 3), (0.5, Position(1, 4), 7), (0.5, Position(4, 4), 1), (1.0, Position(1, 2), 1)],
)
def test_time_left_counts_the_runs_after_this_one(fraction: float, position: Position | None, expected: float) -> None:
    assert remaining(fraction, position) == pytest.approx(expected)


def test_the_bar_shows_three_losses_and_the_time_left(run_of: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(callbacks, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    monkeypatch.setattr(callbacks.Position, "current", classmethod(lambda cls: Position(2, 4)))
    run = run_of("trainer=debug", "+callbacks.progress.interval=0.0", "trainer.threads=1", "latent.dim=4")
    result = experiment.run(run)
    assert result.finished, result.error
    shown = screen.getvalue()
    assert "run 2/4" in shown
    for word in ("epoch 1/1", "total 0.", "rec 0.", "KL ", "0:00:0", "left"):
        assert word in shown


def test_the_sheet_has_originals_above_reconstructions(run_of: Compose) -> None:
    class Echo(nn.Module):
        def forward(self, parameters: Tensor) -> Tensor:
            return torch.full((len(parameters), 1, 4, 4), 0.25)

    class Zeros(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.zeros(len(images), 4)

    model: Any = vae.build(run_of("latent.dim=2").config)
    module = LitVAE(vae.VAE(Zeros(), model.latent, Echo()), lambda output, images: {}, torch.optim.Adam)
    sheet = callbacks.reconstruction_sheet(module, torch.full((3, 1, 4, 4), 0.75))
    assert sheet.shape == (3, 2 * 6 + 2, 3 * 6 + 2)
    assert sheet[0, 2:6, 2:6].eq(0.75).all()
    assert sheet[0, 8:12, 2:6].eq(0.25).all()
