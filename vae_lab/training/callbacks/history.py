"""The clock and the record of every epoch."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vae_lab.training.module import LitVAE, LossError, not_finite


class Row(NamedTuple):
    """One row of history.csv: the terms of the objective, and the seconds of the split's steps in that epoch."""

    epoch: int
    split: str
    seconds: float
    terms: dict[str, float]


class History(Callback):
    """Clock and record of every epoch.

    The seconds of an epoch are those of its training steps, including data loading. Validation (also in the middle of
    an epoch) and checkpoints do not count. The first step of a process (compilation, caches) is timed separately. On an
    asynchronous device, the clock waits for the device only when it stops.

    The record is part of every checkpoint, so a resumed run has the earlier epochs too.

    Args:
        on_epoch: called with all rows so far after each epoch.
    """

    def __init__(self, on_epoch: Callable[[list[Row]], None] = lambda rows: None) -> None:
        self.on_epoch = on_epoch
        self.rows: list[Row] = []
        self.first_step_seconds = math.nan
        self.epoch_seconds: list[float] = []
        self.epoch_cpu_seconds: list[float] = []
        self.epoch_images: list[int] = []
        self.resumed: list[int] = []
        self._is_first_step = True
        self._had_first_step = False
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._running_since: float | None = None
        self._cpu_since = 0.0
        self._evaluation_since = 0.0
        self._val_seconds: float | None = None

    def cpu_share(self, threads: int) -> float:
        """The processor time of the epochs as a share of what so many threads can have; NaN if it is not known."""
        seconds = sum(self.epoch_seconds) * threads
        if len(self.epoch_cpu_seconds) < len(self.epoch_seconds) or seconds <= 0:
            return math.nan
        return min(1.0, sum(self.epoch_cpu_seconds) / seconds)

    @property
    def images_per_second(self) -> float:
        """Training images per second, over `epoch_seconds`."""
        return sum(self.epoch_images) / sum(self.epoch_seconds) if sum(self.epoch_seconds) > 0 else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [[row.epoch, row.split, row.seconds, {**row.terms}] for row in self.rows],
            "epoch_seconds": [*self.epoch_seconds],
            "epoch_cpu_seconds": [*self.epoch_cpu_seconds],
            "first_step_seconds": self.first_step_seconds,
            "epoch_images": [*self.epoch_images],
            "resumed": [*self.resumed],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.take(state_dict)
        self.resumed.append(len(self.epoch_seconds))

    def take(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the record of another `History`; an empty one changes nothing."""
        if not state_dict:
            return
        self.rows = [Row(*row) for row in state_dict["rows"]]
        self.epoch_seconds = [*state_dict["epoch_seconds"]]
        self.epoch_cpu_seconds = [*state_dict.get("epoch_cpu_seconds", ())]  # not in checkpoints of earlier versions
        self.first_step_seconds = state_dict["first_step_seconds"]
        self.epoch_images = [*state_dict["epoch_images"]]
        self.resumed = [*state_dict["resumed"]]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.rows:
            return
        self.on_epoch(self.rows)  # write files and logs of the epochs before the checkpoint again
        for row in self.rows:
            values = {f"{row.split}/{term}": value for term, value in row.terms.items()}
            if row.split == "train" and row.seconds > 0:
                values |= _speed(row.seconds, self.epoch_images[row.epoch - 1])
            for logger in trainer.loggers:
                logger.log_metrics(values, step=row.epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._had_first_step = False
        self._seconds, self._cpu_seconds, self._val_seconds = 0.0, 0.0, None
        self._start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._running_since is None:
            self._start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_first_step:
            self._stop(pl_module)
            if math.isnan(self.first_step_seconds):
                self.first_step_seconds = self._seconds
            self._is_first_step, self._seconds, self._cpu_seconds = False, 0.0, 0.0
            self._had_first_step = True
            self._start()
        if batch_idx + 1 == trainer.num_training_batches:
            self._stop(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module)
        self._evaluation_since = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(pl_module.device)
        self._val_seconds = time.perf_counter() - self._evaluation_since

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        self._stop(pl_module)
        self.epoch_seconds.append(self._seconds)
        self.epoch_cpu_seconds.append(self._cpu_seconds)
        average = pl_module.averages["train"]
        images = average.images - (average.first_images if self._had_first_step else 0)
        self.epoch_images.append(images)
        self._record(pl_module, "train", self._seconds)
        if self._val_seconds is not None:
            self._record(pl_module, "val", self._val_seconds)
        if self._seconds > 0:
            pl_module.log_dict(_speed(self._seconds, images))
        self.on_epoch(self.rows)

    def _start(self) -> None:
        self._running_since, self._cpu_since = time.perf_counter(), time.process_time()

    def _stop(self, module: LightningModule) -> None:
        if self._running_since is not None:
            _wait(module.device)
            self._seconds += time.perf_counter() - self._running_since
            self._cpu_seconds += time.process_time() - self._cpu_since
            self._running_since = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_since = time.perf_counter()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        _wait(pl_module.device)
        self._record(pl_module, "test", time.perf_counter() - self._evaluation_since)
        self.on_epoch(self.rows)

    def _record(self, module: LitVAE, split: str, seconds: float) -> None:
        epoch, value = module.epochs_done, module.averages[split].value()
        self.rows.append(Row(epoch, split, seconds, value))
        invalid = not_finite(value)
        if invalid is not None:
            self.on_epoch(self.rows)
            raise LossError(split, invalid, value[invalid], f"epoch {epoch}")

    def last(self, split: str) -> Row | None:
        """The latest row of a split; None if there is none."""
        return next((row for row in reversed(self.rows) if row.split == split), None)


def _speed(seconds: float, images: int) -> dict[str, float]:
    return {"time/epoch_seconds": seconds, "time/images_per_second": images / seconds}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
