"""Pictures of a model: while it is trained, of validation images; after the test, of test images."""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from vae_lab import results
from vae_lab.config.base import Count
from vae_lab.data.batches import images_of
from vae_lab.model.distributions import by_dimension
from vae_lab.model.vae import VAE
from vae_lab.training.callbacks.tolerant import failures_logged
from vae_lab.training.loggers import log_image
from vae_lab.training.module import LitVAE

PRIOR_SEED = 20131220
"""Seed of the z from which every run decodes its samples of the prior."""

STEPS = 9
"""Images in a row of a traversal or an interpolation."""


class Pictures(Callback):
    """Reconstructions, samples of the prior, traversals and interpolations.

    After the test, the first test images with their reconstructions and samples of the prior go to `pictures.npz`, to
    the sheets `reconstructions.png` and `samples.png`, and to the loggers. During training, every few epochs, the
    loggers get pictures of the first validation images: reconstructions, walks along the latent dimensions with the
    largest KL divergence (one row per dimension, from −3 to 3), straight lines between the posterior means of one image
    and the next; and samples of the prior. z has its own stream, which is the same for every run with the same number
    of latent dimensions. Reconstructions decode the posterior's mean.

    Args:
        folder: where the files go.
        images: number of test images.
        samples: number of samples.
        every_epochs: epochs between two sets of pictures during training; the last epoch has one too.
        rows: number of latent dimensions, and of pairs of images.

    Raises:
        ValueError: if any of the numbers is less than 1.
    """

    changes_results = False

    def __init__(
        self, *, folder: str, images: Count = 10, samples: Count = 20, every_epochs: Count = 2, rows: Count = 6
    ) -> None:
        counts = {"images": images, "samples": samples, "every_epochs": every_epochs, "rows": rows}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, but is {count}")
        self.folder = Path(folder)
        self.images = images
        self.samples = samples
        self.every_epochs = every_epochs
        self.rows = rows
        self._seen: Tensor | None = None
        self._originals: Tensor | None = None

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._seen is None:
            self._seen = images_of(batch)[: max(self.images, self.rows + 1)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        seen, self._seen = self._seen, None
        epoch = pl_module.epochs_done
        due = epoch % self.every_epochs == 0 or epoch == trainer.max_epochs
        if seen is None or not due or not trainer.loggers or not trainer.is_global_zero:
            return
        with failures_logged(f"pictures of epoch {epoch}", pl_module):
            taken = take_pictures(pl_module.vae, seen[: self.images], self.samples)
            log_image(trainer.loggers, "val/reconstructions", _pairs(taken), epoch)
            log_image(trainer.loggers, "latent/samples", _sheet(taken.samples, 10), epoch)
            for name, images in take_walks(pl_module.vae, seen[: self.rows + 1], self.rows).items():
                log_image(trainer.loggers, f"latent/{name}", _sheet(images, STEPS), epoch)

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
        with failures_logged("pictures of the test", pl_module):
            self._keep(trainer, pl_module, originals)

    def _keep(self, trainer: Trainer, pl_module: LitVAE, originals: Tensor) -> None:
        taken = take_pictures(pl_module.vae, originals, self.samples)
        with results.replacing(self.folder / results.PICTURES) as path:
            np.savez(path, **taken._asdict())
        sheets = {"reconstructions": _pairs(taken), "samples": _sheet(taken.samples, 10)}
        for name, sheet in sheets.items():
            scale = max(1, 96 // originals.shape[-2])
            large = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
            with results.replacing(self.folder / f"{name}.png") as path:
                to_pil_image(large).save(path)
            log_image(trainer.loggers, f"test/{name}", sheet, pl_module.epochs_done)


class TakenPictures(NamedTuple):
    """Images of a model, (n, c, h, w) with one byte per channel of a pixel."""

    originals: UInt8[np.ndarray, "n c h w"]
    reconstructions: UInt8[np.ndarray, "n c h w"]
    samples: UInt8[np.ndarray, "m c h w"]


@torch.no_grad()
def take_pictures(vae: VAE, originals: Float[Tensor, "n c h w"], samples: int) -> TakenPictures:
    """Reconstructions of images from the posterior's mean, and samples of the prior from the fixed stream of z."""
    z = vae.draw(samples, torch.Generator().manual_seed(PRIOR_SEED))
    return TakenPictures(
        _as_bytes(originals), _as_bytes(vae.reconstruct(originals.clamp(0, 1))), _as_bytes(vae.decode(z))
    )


@torch.no_grad()
def take_walks(vae: VAE, images: Float[Tensor, "n c h w"], rows: int) -> dict[str, UInt8[np.ndarray, "m c h w"]]:
    """Walks in latent space, nine images per row: `traversals` and, for two images or more, `interpolations`."""
    images = images.clamp(0, 1)  # as they are drawn; a user's images may lie outside
    posterior = vae.encode(images)
    dimensions = by_dimension(posterior, vae.prior())
    order = posterior.mean.var(0) if dimensions is None else dimensions.mean(0)
    widest = order.flatten().argsort(descending=True)[:rows].tolist()
    walks = {"traversals": vae.traverse(images[0], widest, steps=STEPS).flatten(0, 1)}
    lines = [vae.interpolate(a, b, STEPS) for a, b in itertools.pairwise(images)]
    if lines:
        walks["interpolations"] = torch.cat(lines)
    return {name: _as_bytes(walk) for name, walk in walks.items()}


def _pairs(taken: TakenPictures) -> UInt8[Tensor, "3 height width"]:
    return _sheet(np.concatenate([taken.originals, taken.reconstructions]), len(taken.originals))


def _as_bytes(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n c h w"]:
    scaled = images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return scaled.cpu().contiguous().numpy()


def _sheet(images: UInt8[np.ndarray, "n c h w"], columns: int) -> UInt8[Tensor, "3 height width"]:
    return make_grid(torch.from_numpy(images), nrow=columns, padding=2, pad_value=255)
