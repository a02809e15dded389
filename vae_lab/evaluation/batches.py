"""Inputs of every metric: test batches, latent codes of images, random streams."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor

from vae_lab.data import derived_seed
from vae_lab.data.batches import images_of, labels_of
from vae_lab.model.vae import VAE

SEED = 20150901
"""Seed of the random streams from which metrics draw z, the same for every run."""
NOISE_SEED = 20140214
"""Seed of the stream from which the terms of the objective draw z in validation and test, the same for every run."""


class Codes(NamedTuple):
    """A split after the encoder: parameters and mean of each posterior, and the labels if there are any."""

    parameters: Float[Tensor, "n ..."]
    mean: Float[Tensor, "n z"]
    labels: Int[Tensor, " n"] | None


def encoded(vae: VAE, batches: Iterable[Any]) -> Codes:
    """Encode all batches; labels are None unless every batch has them."""
    parameters, labels = [], []
    for batch in batches:
        parameters.append(vae.encoder(images_of(batch)))
        labels.append(labels_of(batch))
    return joined(vae, parameters, labels)


def joined(vae: VAE, parameters: Sequence[Tensor], labels: Sequence[Tensor | None]) -> Codes:
    """Join the codes of several batches; labels are None unless every batch has them."""
    known = [one for one in labels if one is not None]
    whole = torch.cat(list(parameters))
    return Codes(
        whole,
        vae.posterior(whole).mean.flatten(1),
        torch.cat(known) if len(known) == len(labels) else None,
    )


class HeldOutBatches:
    """The batches of a loader, prepared as the trainer prepares them; each iteration gives the same batches.

    Args:
        data: the data module, whose transfer hooks are applied.
        loader: gives the batches.
        like: a tensor with the device and the type that the model expects.
        limit: number of batches, or a fraction of them; None for all.
    """

    def __init__(self, data: LightningDataModule, loader: Any, like: Tensor, limit: int | float | None = None) -> None:
        self.data = data
        self.loader = loader
        self.like = like
        if isinstance(limit, float):  # a loader may not know its length
            limit = None if limit == 1 else int(len(loader) * limit)
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        for raw in itertools.islice(iter(self.loader), self.limit):
            batch = self.data.on_before_batch_transfer(raw, 0)
            batch = self.data.transfer_batch_to_device(batch, self.like.device, 0)
            batch = self.data.on_after_batch_transfer(batch, 0)
            parts = batch if isinstance(batch, (tuple, list)) else (batch,)
            yield tuple(self._moved(part) if isinstance(part, Tensor) else part for part in parts)

    @property
    def count(self) -> int | None:
        """The number of batches; None if the loader does not know it."""
        try:
            known = len(self.loader)
        except TypeError:
            return self.limit
        return known if self.limit is None else min(known, self.limit)

    def _moved(self, part: Tensor) -> Tensor:
        return part.to(self.like) if part.is_floating_point() else part.to(self.like.device)


def generator_for(purpose: str, number: int = 0) -> torch.Generator:
    """A separate random stream for each metric, and each of its parts: adding one does not change the others."""
    return torch.Generator().manual_seed(derived_seed(SEED, purpose, number))


def in_double(values: Tensor) -> Tensor:
    """The values in 64 bits, on their device or, if it is MPS, which has no 64-bit floats, on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def exact(vae: VAE) -> VAE:
    """A copy of a model in 64 bits, to compute densities; on the CPU if the device is MPS."""
    copied = copy.deepcopy(vae)
    on_mps = any(one.device.type == "mps" for one in copied.parameters())
    return (copied.cpu() if on_mps else copied).double()
