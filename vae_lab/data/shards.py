"""This process's rank, its part of a batch, and the communication between the processes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from vae_lab import compat


class Part(NamedTuple):
    """The rank of a process, and the number of processes that train one run together."""

    rank: int
    processes: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def rows(self, images: int) -> slice:
        """This process's rows of a batch of this many images: as many as in other processes, or one more or less.

        The first processes have the larger parts, so that rank 0 always has a row; the last ones may have none.
        """
        each, over = divmod(images, self.processes)
        start = self.rank * each + min(self.rank, over)
        return slice(start, start + each + (self.rank < over))

    def taken(self, images: int) -> slice:
        """The rows that this process computes: its own or, if it has none, the first one, with weight 0.

        Every process must take part in every step, since all wait for each other's gradients.
        """
        own = self.rows(images)
        return own if own.stop > own.start else slice(0, 1)

    def weight(self, images: int) -> float:
        """The weight of this process's mean loss that makes the mean over processes the mean over the images."""
        own = self.rows(images)
        return self.processes * (own.stop - own.start) / images


WHOLE = Part(0, 1)


BATCH_NORM, PART_OF_BATCH = "batch normalisation", "part of a batch"
"""The kinds of difference that `apart` reports."""


def mine() -> Part:
    """This process's part: the whole, unless several processes train a run together."""
    if distributed.is_available() and distributed.is_initialized():
        return Part(distributed.get_rank(), distributed.get_world_size())
    return WHOLE


def gathered(numbers: Sequence[int | float]) -> list[list[int | float]]:
    """The numbers of every process, by rank, in 64 bits. Every process must call it, with equally many numbers."""
    part = mine()
    if part.processes == 1:
        return [[*numbers]]
    own = _on_backend_device(torch.tensor([*numbers], dtype=torch.float64))
    every = [torch.empty_like(own) for _ in range(part.processes)]
    distributed.all_gather(every, own)
    return [one.tolist() for one in every]


def added_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in 64 bits on the CPU, the same on each. Every process must call it."""
    total = _on_backend_device(tensor.detach().cpu().double())
    if mine().processes > 1:
        distributed.all_reduce(total)
    return total.cpu()


def align_buffers(module: nn.Module) -> None:
    """Give all processes the running statistics of rank 0. Every process must call it."""
    if mine().processes > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def apart(module: nn.Module, *, normalizes: bool, others: Sequence[str]) -> list[str]:
    """How a model trained in several processes differs from one trained in one, as `kind: sentence`.

    Args:
        module: the model.
        normalizes: whether each process normalises its own part of a batch.
        others: the parts of the configuration whose losses are not means over images.
    """
    processes, found = mine().processes, []
    if processes == 1:
        return []
    if normalizes and any(compat.is_batch_norm(layer) for layer in module.modules()):
        found.append(
            f"{BATCH_NORM}: each of the {processes} processes normalises its own part of a batch, since on CPUs it "
            "cannot be synchronised: the model is not the one of a single process; encoder.normalization=group and "
            "decoder.normalization=group have no such difference"
        )
    together = f"looks at all images of a batch together, of which each of the {processes} processes has a part"
    found += [f"{PART_OF_BATCH}: the {one} {together}: the model is not the one of a single process" for one in others]
    return found


def _on_backend_device(tensor: Tensor) -> Tensor:
    """The tensor on a device that the processes' backend supports: NCCL supports only GPUs."""
    on_gpu = mine().processes > 1 and distributed.get_backend() == "nccl"
    return tensor.cuda() if on_gpu else tensor
