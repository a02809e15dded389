"""A look at the batches that a model gets: are they what the configuration says, and what the likelihood is for?"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from vae_lab.config import Config, ConfigError, DataConfig, FolderConfig, Problem
from vae_lab.training.module import LitVAE

TOLERANCE = 1e-3
"""How far values may lie outside [0, 1]: rounding, not another range."""


class Inspection(Callback):
    """Checks each batch as it comes to the model, after the hooks of a data module, and the number of images.

    `problem` is what is wrong. `seen` has the splits that gave a batch.

    Args:
        settings: the run's configuration.
    """

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.problem: Problem | None = None
        self.seen: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = trainer.train_dataloader
        self._check_count("train", loader)
        if self._is_foreign and isinstance(loader, DataLoader):
            size, said = loader.batch_size, self.settings.data.batch_size
            if size is not None and size != said:
                self._stop("data.batch_size", f"must be that of its batches, {size:,}, but is {said:,}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_count("val", trainer.val_dataloaders)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_count("test", trainer.test_dataloaders)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._check(pl_module, "train", batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._check(pl_module, "val", batch)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._check(pl_module, "test", batch)

    @property
    def _is_foreign(self) -> bool:
        return not isinstance(self.settings.data, DataConfig | FolderConfig)

    def _check_count(self, split: str, loader: Any) -> None:
        """Compare the images of a user's loader with the number in the configuration, where both are known."""
        said = getattr(self.settings.data, f"num_{split}", None)
        sampler = getattr(loader, "batch_sampler", None)
        if not self._is_foreign or type(said) is not int or type(sampler) is not BatchSampler:
            return
        count = len(sampler.sampler)  # type: ignore[arg-type]  # torch's samplers know it
        if count != said:
            what = f"must be the number of images that {self._loader(split)} gives, {count:,}, but is {said:,}"
            self._stop(f"data.num_{split}", what)

    def _check(self, module: LightningModule, split: str, batch: Any) -> None:
        assert isinstance(module, LitVAE)
        self.seen.add(split)
        images = batch[0] if isinstance(batch, tuple | list) and batch else batch
        wrong = self._wrong_images(images, next(module.parameters()).dtype, module.vae.likelihood.data)
        if wrong is None and isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
            labels = batch[1]
            if labels.dim() == 0 or len(labels) != len(images):
                wrong = f"labels of shape {list(labels.shape)} for {len(images):,} images: one for each is needed"
        if wrong is not None:
            self._stop("data", f"{self._loader(split)} gives {wrong}")

    def _wrong_images(self, images: Any, dtype: torch.dtype, kind: str) -> str | None:
        if not isinstance(images, Tensor):
            return f"a {type(images).__name__}, but must give images (b, c, h, w), or a tuple of images and labels"
        if images.dtype != dtype:
            remedy = "divide by 255" if images.dtype == torch.uint8 else "convert them with images.float()"
            return f"images of type {images.dtype}, but they must be {dtype} with values in [0, 1]: {remedy}"
        shape = [*self.settings.data.image_shape]
        if [*images.shape[1:]] != shape or not len(images):
            return f"images of shape {[*images.shape]}, but data.image_shape={shape} makes it {['b', *shape]}"
        if not images.isfinite().all():
            return "images with NaN or infinite values"
        low, high = images.min().item(), images.max().item()
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            remedy = "clamp them, or bring them there"
            if low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
                remedy = "(images + 1) / 2 does if they are meant to lie in [-1, 1]"
            elif low >= 0 and 1.5 < high <= 255:
                remedy = "images / 255 does"
            return f"images with values from {low:.3g} to {high:.3g}, but they must lie in [0, 1]: {remedy}"
        levels = {"binary": 1, "levels": 255}.get(kind)
        if levels is not None and not torch.allclose(images * levels, (images * levels).round(), atol=TOLERANCE):
            needed = "pixels that are 0 or 1" if kind == "binary" else "the 256 grey levels n/255"
            return f"other images than the likelihood {self.settings.likelihood.target} is for: it needs {needed}"
        return None

    def _loader(self, split: str) -> str:
        return f"{split}_dataloader of {self.settings.data.target}"

    def _stop(self, key: str, text: str) -> None:
        self.problem = Problem(key, text)
        raise ConfigError(self.problem)
