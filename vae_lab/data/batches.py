"""Batches of images: images in memory, or images read from their files on demand."""

import hashlib
import logging
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_lab.config.base import Binarize
from vae_lab.data.binarize import WHITE, by_levels
from vae_lab.data.shards import WHOLE, Part, mine

log = logging.getLogger(__name__)

EVALUATION_BATCH = 128


class Split(NamedTuple):
    """The images of one split, one byte per pixel, and their classes."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]


Batch = Float[Tensor, "b c h w"] | tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]
"""Images with values in [0, 1], or these and their classes."""


Item = tuple[UInt8[Tensor, "c h w"], int]
"""An image and its class."""


class Batches:
    """Batches of tensors that are already on the model's device; the loader that Lightning iterates over.

    With a `seed` the order of the images differs in every pass. It depends only on the seed and the number of the
    pass, so that every model sees the same order and a later process can repeat it. With `labels` a batch is a
    pair of images and labels. A process that trains together with others gets its `part` of each batch. With
    `draws_binary` every pixel is drawn again in each pass, 0 or 1, by `seed` and the number of the pass.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        batch_size: int,
        seed: int | None = None,
        labels: Int[Tensor, " n"] | None = None,
        part: Part = WHOLE,
        *,
        draws_binary: bool = False,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.labels = labels
        self.part = part
        self.draws_binary = draws_binary
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def images_in(self, number: int) -> int:
        """The number of images in a batch, counted from 0, including the other processes' parts."""
        return size_of(number, len(self.images), self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order().to(self.images.device)
        generator = _binary_stream(self.seed, self.epoch) if self.draws_binary else None
        for whole in torch.split(order, self.batch_size):
            indices = whole[self.part.taken(len(whole))]
            chosen = self.images[indices]
            if generator is not None:
                chosen = _redrawn(chosen, len(whole), self.part, generator)
            images = _as_float(chosen)
            yield images if self.labels is None else (images, self.labels[indices])

    def _order(self) -> Int[Tensor, " n"]:
        return order_of(len(self.images), self.seed, self.epoch)


class Streamed:
    """Batches of images that workers read on demand, in the same order as in `Batches`.

    Args:
        images: returns an image, one byte per pixel, and its class.
        batch_size: images per step; the last batch may be smaller.
        seed: see `Batches`.
        workers: number of processes that read images.
        labelled: whether a batch is a pair of images and labels.
        part: see `Batches`.
        draws_binary: see `Batches`.
    """

    def __init__(
        self,
        images: Dataset[Item],
        batch_size: int,
        seed: int | None,
        workers: int,
        *,
        labelled: bool = False,
        part: Part = WHOLE,
        draws_binary: bool = False,
    ) -> None:
        count = len(images)  # type: ignore[arg-type]  # torch's Dataset does not declare it
        self.order = _Order(count, batch_size, seed, part)
        self.labelled = labelled
        self.draws_binary = draws_binary
        self.loader: DataLoader[Item] = DataLoader(
            images,
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_through_pipes if workers and _lacks_shared_memory() else None,
            generator=torch.Generator(),  # else it draws from torch's stream, which the noise of a step uses
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.order.epoch = epoch

    def __len__(self) -> int:
        return len(self.order)

    def images_in(self, number: int) -> int:
        """The number of images in a batch, counted from 0, including the other processes' parts."""
        return size_of(number, self.order.count, self.order.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        generator = _binary_stream(self.order.seed, self.order.epoch) if self.draws_binary else None
        for number, (images, labels) in enumerate(map(_as_tensors, self.loader)):
            if generator is not None:
                images = _redrawn(images, self.images_in(number), self.order.part, generator)
            yield (_as_float(images), labels) if self.labelled else _as_float(images)


SHARED_MEMORY = "/dev/shm"
LEAST_SHARED = 2**30
"""Free bytes of shared memory below which workers send batches through pipes; a container often has 64 MB."""


def _lacks_shared_memory() -> bool:
    """Whether workers must not use shared memory: where it is full the system kills the process that writes to it."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free < LEAST_SHARED
    except OSError:  # another system, where it is not a folder
        return False


def _through_pipes(items: list[Item]) -> tuple[np.ndarray, list[int]]:
    """A batch without tensors, which torch would put into shared memory."""
    images, labels = zip(*items, strict=True)
    return np.stack([image.numpy() for image in images]), [*labels]


def _as_tensors(batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
    images, labels = batch
    return torch.as_tensor(images), torch.as_tensor(labels)


class _Order(Sampler[list[int]]):
    """The images of each batch, or of a process's part of it."""

    def __init__(self, count: int, batch_size: int, seed: int | None, part: Part) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.part = part
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for whole in torch.split(order_of(self.count, self.seed, self.epoch), self.batch_size):
            yield whole[self.part.taken(len(whole))].tolist()


def size_of(number: int, images: int, batch_size: int) -> int:
    """The size of a batch, counted from 0, of this many images: all but the last are full."""
    return min(batch_size, images - number * batch_size)


def order_of(count: int, seed: int | None, epoch: int) -> Int[Tensor, " n"]:
    """The order of this many images in an epoch: as stored without a seed, else drawn by seed and epoch."""
    if seed is None:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, "order", epoch)))


def _as_float(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _binary_stream(seed: int | None, epoch: int) -> torch.Generator:
    assert seed is not None, "images are drawn again in training only"
    return torch.Generator().manual_seed(derived_seed(seed, "binary", epoch))


def _redrawn(
    images: UInt8[Tensor, "b c h w"], whole: int, part: Part, generator: torch.Generator
) -> UInt8[Tensor, "b c h w"]:
    """Random black and white, from numbers that every process draws for the whole batch."""
    levels = torch.randint(WHITE, (whole, *images.shape[1:]), generator=generator, dtype=torch.uint8)
    return by_levels(images, levels[part.taken(whole)])


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """A separate seed for each purpose and epoch of a run, so that streams do not overlap."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def images_of(batch: Any) -> Float[Tensor, "b c h w"]:
    """The images of a batch: the batch itself, or the first of a tuple, as in most data modules."""
    images: Tensor = batch[0] if isinstance(batch, (tuple, list)) else batch
    return images


def labels_of(batch: Any) -> Int[Tensor, " b"] | None:
    """The classes of a batch; None if it has none."""
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    are_classes = isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point()
    return labels if are_classes else None


# --- Data modules ------------------------------------------------------------------------------------------


class ImageModule(LightningDataModule):
    """The data module for images of any source; subclasses that read them implement `loader`.

    Args:
        batch_size: images per step.
        seed: seed of the order of the training images.
        binarize: how pixels are made 0 or 1, if they are.
        binarize_seed: seed of the images that are drawn once.
    """

    def __init__(self, batch_size: int, seed: int = 0, binarize: Binarize = "none", binarize_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.seed = seed
        self.binarize = binarize
        self.binarize_seed = binarize_seed

    def draws_binary(self, seed: int | None) -> bool:
        """Whether a loader draws its images again in each pass; only the training loader does."""
        return seed is not None and self.binarize == "dynamic"

    @abstractmethod
    def loader(self, split: str, seed: int | None, *, labelled: bool) -> Batches | Streamed:
        """Batches of a split; with a seed their order differs in every epoch."""

    def labelled(self, split: str) -> Batches | Streamed:
        """Batches of a split's images and classes, in the order of the files; models never train on these."""
        return self.loader(split, None, labelled=True)

    def train_dataloader(self) -> Batches | Streamed:
        """Batches of the training images, in a different order every epoch."""
        return self.loader("train", self.seed, labelled=False)

    def val_dataloader(self) -> Batches | Streamed:
        """Batches of the validation images."""
        return self.loader("val", None, labelled=False)

    def test_dataloader(self) -> Batches | Streamed:
        """Batches of the test images and their classes."""
        return self.labelled("test")

    def part(self, seed: int | None) -> Part:
        """This process's part of a training batch. Elsewhere it gets the whole batch and takes its part later."""
        return WHOLE if seed is None else mine()

    def size_of_batch(self, seed: int | None) -> int:
        """Images per step: `batch_size` in training, elsewhere a size that is fast."""
        return EVALUATION_BATCH if seed is None else self.batch_size

    def device(self) -> torch.device:
        """The device of the model."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device; does nothing if it is already there."""
        if isinstance(batch, tuple):
            images, labels = batch
            return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        return batch.to(device, non_blocking=True)
