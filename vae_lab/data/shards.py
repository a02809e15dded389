"""Which process of how many this one is, which part of a batch is its own, and what the processes tell each other."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from vae_lab import compat


class Part(NamedTuple):
    """The process `rank` of `processes` that train one run together."""

    rank: int
    processes: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def rows(self, images: int) -> slice:
        """Which rows of a batch of so many images are this process's: as many as the others', or one more or less.

        The first process has the larger part, so that it is never without one; the last ones may have none.
        """
        each, over = divmod(images, self.processes)
        start = self.rank * each + min(self.rank, over)
        return slice(start, start + each + (self.rank < over))

    def taken(self, images: int) -> slice:
        """The rows that this process computes: its own or, where it has none, the first one, which then weighs nothing.

        Every process must take part in every step, since all wait for each other's gradients.
        """
        own = self.rows(images)
        return own if own.stop > own.start else slice(0, 1)

    def weight(self, images: int) -> float:
        """What the mean loss of this process's rows counts, so that the mean over processes is that over the images."""
        own = self.rows(images)
        return self.processes * (own.stop - own.start) / images


WHOLE = Part(0, 1)


BATCH_NORM = "batch normalisation"
"""What `apart` tells of."""


def mine() -> Part:
    """The part of this process: the whole, unless it is one of several that `vae_lab.rank` has brought together."""
    if distributed.is_available() and distributed.is_initialized():
        return Part(distributed.get_rank(), distributed.get_world_size())
    return WHOLE


def gathered(numbers: Sequence[int | float]) -> list[list[int | float]]:
    """The numbers of every process, by rank, in 64 bits; all call it, each with as many. Alone it gives its own."""
    part = mine()
    if part.processes == 1:
        return [[*numbers]]
    own = _placed(torch.tensor([*numbers], dtype=torch.float64))
    every = [torch.empty_like(own) for _ in range(part.processes)]
    distributed.all_gather(every, own)
    return [one.tolist() for one in every]


def added_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in 64 bits on the CPU, the same on each; all call it."""
    total = _placed(tensor.detach().cpu().double())
    if mine().processes > 1:
        distributed.all_reduce(total)
    return total.cpu()


def align_buffers(module: nn.Module) -> None:
    """Give all processes the first one's running statistics; all call it."""
    if mine().processes > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def apart(module: nn.Module) -> list[str]:
    """What sets a model trained on CPUs in several processes apart from one trained in one, as `kind: sentence`."""
    processes = mine().processes
    if processes == 1 or not any(compat.is_batch_norm(layer) for layer in module.modules()):
        return []
    return [
        f"{BATCH_NORM}: each of the {processes} processes normalises its own part of a batch, since on CPUs it "
        "cannot be synchronised: the model is not the one of a single process; encoder.normalization=group and "
        "decoder.normalization=group have no such difference"
    ]


def _placed(tensor: Tensor) -> Tensor:
    """Where the processes' way of talking takes it: NCCL knows GPUs only."""
    on_gpu = mine().processes > 1 and distributed.get_backend() == "nccl"
    return tensor.cuda() if on_gpu else tensor
