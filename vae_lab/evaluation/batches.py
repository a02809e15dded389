"""What every metric starts from: the test's batches, the codes of images, random streams."""

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
"""Start of the streams of z that the metrics draw, the same for every run."""


class Codes(NamedTuple):
    """What the encoder makes of a split: parameters and mean of each posterior, and the class if there is one."""

    parameters: Float[Tensor, "n ..."]
    mean: Float[Tensor, "n z"]
    labels: Int[Tensor, " n"] | None


def encoded(vae: VAE, batches: Iterable[Any]) -> Codes:
    """The codes of all batches; without labels unless every batch has them."""
    parameters, labels = [], []
    for batch in batches:
        parameters.append(vae.encoder(images_of(batch)))
        labels.append(labels_of(batch))
    return joined(vae, parameters, labels)


def joined(vae: VAE, parameters: Sequence[Tensor], labels: Sequence[Tensor | None]) -> Codes:
    """The codes of batches as those of one; without labels unless every batch has them."""
    known = [one for one in labels if one is not None]
    whole = torch.cat(list(parameters))
    return Codes(
        whole,
        vae.posterior(whole).mean.flatten(1),
        torch.cat(known) if len(known) == len(labels) else None,
    )


class HeldOutBatches:
    """A loader's batches as the trainer gives them to a model, as many as it tests on; each pass gives the same ones.

    Args:
        data: whose hooks the batches pass through.
        loader: where they come from.
        place: a tensor of the device and the type that the model takes.
        limit: how many, or which share of them; None for all.
    """

    def __init__(self, data: LightningDataModule, loader: Any, place: Tensor, limit: int | float | None = None) -> None:
        self.data = data
        self.loader = loader
        self.place = place
        if isinstance(limit, float):  # a loader may not know its length
            limit = None if limit == 1 else int(len(loader) * limit)
        self.limit = limit

    def __iter__(self) -> Iterator[Any]:
        for given in itertools.islice(iter(self.loader), self.limit):
            batch = self.data.on_before_batch_transfer(given, 0)
            batch = self.data.transfer_batch_to_device(batch, self.place.device, 0)
            batch = self.data.on_after_batch_transfer(batch, 0)
            parts = batch if isinstance(batch, (tuple, list)) else (batch,)
            yield tuple(self._moved(part) if isinstance(part, Tensor) else part for part in parts)

    def _moved(self, part: Tensor) -> Tensor:
        return part.to(self.place) if part.is_floating_point() else part.to(self.place.device)


def generator_for(purpose: str) -> torch.Generator:
    """A stream of its own for each figure, so that asking for one more changes none of the others."""
    return torch.Generator().manual_seed(derived_seed(SEED, purpose))


def in_double(values: Tensor) -> Tensor:
    """The values in 64 bits, where they are or, for a device that has no such numbers, on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def exact(vae: VAE) -> VAE:
    """A copy of a model in 64 bits, for its densities; where a device has no such numbers, on the CPU."""
    copied = copy.deepcopy(vae)
    on_mps = any(one.device.type == "mps" for one in copied.parameters())
    return (copied.cpu() if on_mps else copied).double()
