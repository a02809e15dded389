"""Pages of TensorBoard that want more than a number an epoch."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from vae_lab import results
from vae_lab.metrics import labels_of
from vae_lab.module import LitVAE, images_of

CHARTS = {
    "total": ["train/total", "val/total"],
    "reconstruction": ["train/reconstruction", "val/reconstruction"],
    "KL": ["train/kl", "val/kl"],
    "validation total": ["val/total"],
    "images a second": ["time/images_per_second"],
}


class TensorBoardPages(Callback):
    """TensorBoard's custom scalars, all runs in one chart, and its projector, the test images' codes.

    The layout of the charts is the same in every run, and TensorBoard makes one page of it. A point of the projector is
    the posterior mean of a test image, with the image as its sprite and the name of its class as its label.

    Args:
        points: how many test images, the first ones; 0 for none.

    Raises:
        ValueError: for fewer than none.
    """

    def __init__(self, points: int = 500) -> None:
        if points < 0:
            raise ValueError(f"points must be at least 0, but is {points}")
        self.points = points
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for writer in _writers(trainer):
            writer.add_custom_scalars({"all cells": {name: ["Multiline", tags] for name, tags in CHARTS.items()}})

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        wanted = self.points - sum(map(len, self._images))
        if wanted > 0:
            self._images.append(images_of(batch)[:wanted])
            labels = labels_of(batch)
            if labels is not None:
                self._labels.append(labels[:wanted])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        images, labels = self._images, self._labels
        self._images, self._labels = [], []
        if not images or not trainer.is_global_zero:
            return
        names = None
        if len(labels) == len(images):
            classes = getattr(getattr(trainer, "datamodule", None), "classes", None)
            names = [classes[label] if classes else str(label) for label in torch.cat(labels).tolist()]
        for writer in _writers(trainer):
            codes = torch.cat([pl_module.vae.encode(some).mean for some in images])
            writer.add_embedding(codes.float(), names, torch.cat(images).float(), results.PROJECTOR, "test images")


def _writers(trainer: Trainer) -> list[SummaryWriter]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
