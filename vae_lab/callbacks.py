"""What watches a training: the clock and history of its epochs, the progress bar, the pictures."""

import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from vae_lab import results
from vae_lab.config import Position
from vae_lab.module import LitVAE, LossError, images_of, not_finite
from vae_lab.objective import TERMS
from vae_lab.vae import VAE

PRIOR_SEED = 20131220
"""Start of the stream of z from which every run's samples of the prior are decoded."""


class Row(NamedTuple):
    """One line of history.csv; `seconds` are those of the split's steps in that epoch."""

    epoch: int
    split: str
    total: float
    reconstruction: float
    kl: float
    seconds: float


class History(Callback):
    """Clock and record of every epoch.

    An epoch's seconds are those of its training steps, loading included; validation (also in the middle of an epoch)
    and checkpoints are not. The first step of a process (compilation, caches) is timed apart. Where the device works on
    its own, the clock waits for it where it stops only.

    The record is part of every checkpoint: a run that goes on from one has the epochs before it too.

    Args:
        on_epoch: called with all rows so far after each epoch.
    """

    def __init__(self, on_epoch: Callable[[list[Row]], None] = lambda rows: None) -> None:
        self.on_epoch = on_epoch
        self.rows: list[Row] = []
        self.first_step_seconds = math.nan
        self.epoch_seconds: list[float] = []
        self.epoch_images: list[int] = []
        self.resumed: list[int] = []
        self._is_first_step = True
        self._first_batch = 0
        self._seconds = 0.0
        self._running_since: float | None = None
        self._evaluation_since = 0.0
        self._val_seconds: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images trained on in a second of `epoch_seconds`."""
        return sum(self.epoch_images) / sum(self.epoch_seconds) if sum(self.epoch_seconds) > 0 else math.nan

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [[*row] for row in self.rows],
            "epoch_seconds": [*self.epoch_seconds],
            "first_step_seconds": self.first_step_seconds,
            "epoch_images": [*self.epoch_images],
            "resumed": [*self.resumed],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [Row(*row) for row in state_dict["rows"]]
        self.epoch_seconds = [*state_dict["epoch_seconds"]]
        self.first_step_seconds = state_dict["first_step_seconds"]
        self.epoch_images = [*state_dict["epoch_images"]]
        self.resumed = [*state_dict["resumed"], len(self.epoch_seconds)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.rows:
            return
        self.on_epoch(self.rows)  # what the epochs before a checkpoint left, files and logs, is written anew
        for row in self.rows:
            values = {f"{row.split}/{term}": getattr(row, term) for term in TERMS}
            if row.split == "train" and row.seconds > 0:
                values |= _speed(row.seconds, self.epoch_images[row.epoch - 1])
            for logger in trainer.loggers:
                logger.log_metrics(values, step=row.epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_batch = 0
        self._seconds, self._val_seconds = 0.0, None
        self._running_since = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._running_since is None:
            self._running_since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_first_step:
            self._stop(pl_module)
            if math.isnan(self.first_step_seconds):
                self.first_step_seconds = self._seconds
            self._is_first_step, self._seconds = False, 0.0
            self._first_batch = len(images_of(batch))
            self._running_since = time.perf_counter()
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
        images = pl_module.averages["train"].images - self._first_batch
        self.epoch_images.append(images)
        self._record(pl_module, "train", self._seconds)
        if self._val_seconds is not None:
            self._record(pl_module, "val", self._val_seconds)
        if self._seconds > 0:
            pl_module.log_dict(_speed(self._seconds, images))
        self.on_epoch(self.rows)

    def _stop(self, module: LightningModule) -> None:
        if self._running_since is not None:
            _wait(module.device)
            self._seconds += time.perf_counter() - self._running_since
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
        self.rows.append(Row(epoch, split, **value, seconds=seconds))
        wrong = not_finite(value)
        if wrong is not None:
            self.on_epoch(self.rows)
            raise LossError(split, wrong, value[wrong], f"epoch {epoch}")

    def last(self, split: str) -> Row | None:
        """The latest row of a split, None if it was never evaluated."""
        return next((row for row in reversed(self.rows) if row.split == split), None)


def _speed(seconds: float, images: int) -> dict[str, float]:
    return {"time/epoch_seconds": seconds, "time/images_per_second": images / seconds}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Progress(Callback):
    """A bar with the three losses, on a terminal; in a multirun also which run of how many and the time left.

    The losses are those of the epoch so far. They are fetched from the device a few times a second, not each step.

    Args:
        interval: seconds between two updates.
    """

    def __init__(self, interval: float = 0.2) -> None:
        self.interval = interval
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._started = self._shown = 0.0
        self._total: float | None = None
        self._earlier = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        console = Console(stderr=True)
        if not console.is_terminal or not trainer.is_global_zero:
            return
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
        self._earlier = trainer.current_epoch / (trainer.max_epochs or 1)  # the part that an interrupted run had done
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
        state = (
            f"epoch {pl_module.epochs_done}/{trainer.max_epochs}  total {value['total']:.4f}  "
            f"rec {value['reconstruction']:.4f}  KL {value['kl']:.3f}"
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
    """What is left of the sweep, as a multiple of the time that this run has taken from `earlier` to `fraction`."""
    runs_after = position.runs - position.number if position else 0
    return (1 - fraction + runs_after) / (fraction - earlier)


def _title() -> str:
    position = Position.current()
    return f"run {position.number}/{position.runs}" if position else "training"


class Pictures(Callback):
    """Test images with their reconstructions, and samples of the prior, after the test.

    Both go to `pictures.npz`, to the sheets `reconstructions.png` and `samples.png`, and to TensorBoard. The images are
    the first of the test set and z has a stream of its own, the same for every run with as many latent dimensions; a
    reconstruction is that of the posterior's mean.

    Args:
        folder: where the files go.
        images: how many test images.
        samples: how many samples.

    Raises:
        ValueError: for fewer than one of either.
    """

    def __init__(self, folder: str, images: int = 10, samples: int = 20) -> None:
        for name, count in (("images", images), ("samples", samples)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, but is {count}")
        self.folder = Path(folder)
        self.images = images
        self.samples = samples
        self._originals: Tensor | None = None

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._originals is None:
            self._originals = images_of(batch)[: self.images]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        if self._originals is None or not trainer.is_global_zero:
            return
        originals, self._originals = self._originals, None
        taken = take_pictures(pl_module.vae, originals, self.samples)
        with results.replacing(self.folder / results.PICTURES) as path:
            np.savez(path, allow_pickle=False, **taken._asdict())
        sheets = {
            "reconstructions": _sheet(np.concatenate([taken.originals, taken.reconstructions]), len(taken.originals)),
            "samples": _sheet(taken.samples, 10),
        }
        for name, sheet in sheets.items():
            scale = max(1, 96 // originals.shape[-2])
            large = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            with results.replacing(self.folder / f"{name}.png") as path:
                to_pil_image(large).save(path)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"test/{name}", sheet, pl_module.epochs_done)


class TakenPictures(NamedTuple):
    """Images of a model, (n, c, h, w) with a byte a pixel."""

    originals: UInt8[np.ndarray, "n c h w"]
    reconstructions: UInt8[np.ndarray, "n c h w"]
    samples: UInt8[np.ndarray, "m c h w"]


@torch.no_grad()
def take_pictures(vae: VAE, originals: Float[Tensor, "n c h w"], samples: int) -> TakenPictures:
    """Reconstructions of images through the posterior's mean, and samples of the prior from the fixed stream of z."""
    noise = torch.zeros(len(originals), vae.latent.dim, device=originals.device)
    # Drawn on the CPU, so that the stream is the same on every device.
    z = torch.randn(samples, vae.latent.dim, generator=torch.Generator().manual_seed(PRIOR_SEED))
    return TakenPictures(
        _as_bytes(originals),
        _as_bytes(vae(originals, noise).reconstruction),
        _as_bytes(vae.decoder(z.to(originals.device))),
    )


def _as_bytes(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n c h w"]:
    scaled = images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.cpu().contiguous().numpy()


def _sheet(images: UInt8[np.ndarray, "n c h w"], columns: int) -> UInt8[Tensor, "3 height width"]:
    return make_grid(torch.from_numpy(images), nrow=columns, padding=2, pad_value=255)
