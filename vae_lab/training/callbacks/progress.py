"""The progress bar of training."""

import math
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from vae_lab.config import Inherited, Position
from vae_lab.config.base import NonNegative
from vae_lab.training.module import LitVAE

SHORT = {"reconstruction": "rec", "kl": "KL"}


class Progress(Callback):
    """A progress bar with the objective's terms, on a terminal; in a multirun also the run's number and the time left.

    The terms are averages over the epoch so far. They are fetched from the device a few times per second, not each
    step.

    Args:
        interval: seconds between two updates.
    """

    changes_results = False

    def __init__(self, *, interval: NonNegative = 0.2) -> None:
        self.interval = interval
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._started = self._shown = 0.0
        self._total: float | None = None
        self._earlier = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        console = Console(stderr=True)
        if not console.is_terminal or not trainer.is_global_zero or Inherited.here.is_worker:
            return  # several bars would collide
        self._started = time.perf_counter()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        batches = trainer.num_training_batches * (trainer.max_epochs or 1)
        self._total = float(batches) if math.isfinite(batches) else None
        self._earlier = trainer.current_epoch / (trainer.max_epochs or 1)  # done before an interruption
        self._task = self._bar.add_task(_title(), total=self._total, state="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or time.perf_counter() - self._shown < self.interval:
            return
        self._shown = time.perf_counter()
        assert isinstance(pl_module, LitVAE)
        value = pl_module.averages["train"].value()
        state = f"epoch {pl_module.epochs_done}/{trainer.max_epochs}  " + "  ".join(
            f"{SHORT.get(term, term)} {one:.4g}" for term, one in value.items()
        )
        done = float(batch_idx + 1)
        if self._total is not None:
            done += trainer.current_epoch * trainer.num_training_batches
            seconds = (self._shown - self._started) * remaining(done / self._total, Position.current(), self._earlier)
            state += f"  {timedelta(seconds=round(seconds))} left"
        self._bar.update(self._task, completed=done, state=state, refresh=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def remaining(fraction: float, position: Position | None, earlier: float = 0.0) -> float:
    """The time left in the sweep, as a multiple of the time that this run took from `earlier` to `fraction`."""
    runs_after = position.runs - position.number if position else 0
    return (1 - fraction + runs_after) / (fraction - earlier)


def _title() -> str:
    position = Position.current()
    return f"run {position.number}/{position.runs}" if position else "training"
