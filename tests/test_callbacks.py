"""The clock, the time left and the picture."""

import io
import time
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


class Slow(nn.Module):
    """Sleeps in training, first much longer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            self.calls += 1
            time.sleep(0.3 if self.calls == 1 else 0.02 if self.training else 0.2)
        return x


def test_the_clock_counts_training_steps_alone(run_of: Compose) -> None:
    blocks = f"[{{down:2}},{{_target_:{__name__}.Slow}}]"
    run = run_of(
        f"encoder.blocks={blocks}", "decoder.blocks=[{dense:2}]", "latent.dim=2", "data.num_train=50",
        "data.num_val=10", "data.num_test=10", "data.batch_size=10", "trainer.max_epochs=2", "trainer.threads=1",
        "callbacks=quiet",
    )  # fmt: skip
    timing = experiment.run(run).timing
    assert timing.first_step_seconds is not None
    assert timing.first_step_seconds >= 0.3
    assert len(timing.epoch_seconds) == 2
    # four and five steps of 0.02 s; the validation of 0.2 s is not among them
    assert 0.08 <= timing.epoch_seconds[0] < 0.2
    assert 0.10 <= timing.epoch_seconds[1] < 0.2
    assert timing.train_seconds == pytest.approx(sum(timing.epoch_seconds))
    assert timing.images_per_second == pytest.approx(90 / timing.train_seconds)


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
