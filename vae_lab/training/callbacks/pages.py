"""TensorBoard pages that need more than one number per epoch."""

from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.tensorboard import SummaryWriter

from vae_lab import results
from vae_lab.config.base import CountOrNone
from vae_lab.data.batches import images_of, labels_of
from vae_lab.training.callbacks.tolerant import failures_logged
from vae_lab.training.module import LitVAE

CHARTS = {
    "total": ["train/total", "val/total"],
    "reconstruction": ["train/reconstruction", "val/reconstruction"],
    "KL": ["train/kl", "val/kl"],
    "validation total": ["val/total"],
    "images a second": ["time/images_per_second"],
}


LARGEST_SPRITE = 64
"""Largest height and width of the projector's images: browsers support sheets of up to 8,192 pixels."""


class TensorBoardPages(Callback):
    """TensorBoard's custom scalars, with all runs in one chart, and its projector, with the codes of test images.

    The layout of the charts is the same in every run, so TensorBoard merges it into one page. A point of the projector
    is the posterior mean of a test image, with the image as its sprite and the name of its class as its label.

    Args:
        points: number of test images, the first ones; 0 for none.

    Raises:
        ValueError: if `points` is negative.
    """

    changes_results = False

    def __init__(self, *, points: CountOrNone = 500) -> None:
        if points < 0:
            raise ValueError(f"points must be at least 0, but is {points}")
        self.points = points
        self._codes: list[Tensor] = []
        self._sprites: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        for writer in _writers(trainer):
            units = pl_module.objective.units_for(pl_module.vae.posterior)
            further = (term for term in units if term not in CHARTS and term != "kl")
            charts = CHARTS | {term: [f"train/{term}", f"val/{term}"] for term in further}
            writer.add_custom_scalars({"all cells": {name: ["Multiline", tags] for name, tags in charts.items()}})

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, LitVAE)
        wanted = self.points - sum(map(len, self._codes))
        if wanted <= 0 or not _writers(trainer):
            return
        images, labels, vae = images_of(batch)[:wanted], labels_of(batch), pl_module.vae
        with failures_logged("the projector", pl_module), torch.no_grad():
            self._codes.append(vae.posterior(vae.encoder(images)).mean.flatten(1))
            self._sprites.append(_sprites(images))
            if labels is not None:
                self._labels.append(labels[:wanted])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        codes, sprites, labels = self._codes, self._sprites, self._labels
        self._codes, self._sprites, self._labels = [], [], []
        if not codes or not trainer.is_global_zero:
            return
        with failures_logged("the projector", pl_module):
            names = None
            if len(labels) == len(codes):
                classes = getattr(getattr(trainer, "datamodule", None), "classes", None)
                names = [classes[label] if classes else str(label) for label in torch.cat(labels).tolist()]
            for writer in _writers(trainer):
                points = torch.cat(codes).float()
                writer.add_embedding(points, names, torch.cat(sprites), results.PROJECTOR, "test images")


def _sprites(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c s s"]:
    """Pad images to squares and shrink large ones, as the projector needs."""
    height, width = images.shape[2:]
    size = max(height, width)
    left, top = (size - width) // 2, (size - height) // 2
    square = pad(images.float(), (left, size - width - left, top, size - height - top), value=1.0)
    return interpolate(square, LARGEST_SPRITE, mode="area") if size > LARGEST_SPRITE else square


def _writers(trainer: Trainer) -> list[SummaryWriter]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
