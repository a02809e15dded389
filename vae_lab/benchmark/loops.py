"""Plain training loops, without this project's loop. Imports no Lightning, which would slow their start."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Subset

from vae_lab import config
from vae_lab.config import Config
from vae_lab.model import vae
from vae_lab.objectives.base import Objective


class Epoch(NamedTuple):
    """The duration of one epoch in seconds, and its total averaged over the images."""

    seconds: float
    total: float


class Loop:
    """The simplest loop over training steps of a model.

    Args:
        model: the model that `objective` takes.
        objective: computes the total.
        optimizer: the optimiser of the model's weights.
        batches: returns the batches of epoch 0, 1, …: images (b, c, h, w) in [0, 1].
        scheduler: advances once per step.
        precision: `bf16-mixed` or `32-true`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        batches: Callable[[int], Iterable[Tensor]],
        scheduler: LRScheduler | None = None,
        precision: str = "32-true",
    ) -> None:
        self.model = model.train()
        self.objective = objective
        self.optimizer = optimizer
        self.batches = batches
        self.scheduler = scheduler
        self.mixed = precision == "bf16-mixed"
        self.epochs = 0
        self.first_step = 0.0

    def epoch(self) -> Epoch:
        """Train one epoch; `first_step` is the time (`time.time`) at which the very first step ended."""
        started, images, total = time.perf_counter(), 0, torch.zeros(())
        for batch in self.batches(self.epochs):
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.mixed):
                loss = self.objective(self.model, batch, 0.0)["total"]
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            total += loss.detach() * len(batch)
            images += len(batch)
            self.first_step = self.first_step or time.time()
        self.epochs += 1
        return Epoch(time.perf_counter() - started, total.item() / images)


def plain(settings: Config, root: Path) -> Loop:
    """A typical user's loop: 32-bit floats, `DataLoader` over torchvision with `ToTensor`, torch's default Adam.

    Args:
        settings: gives the modules, the images and the batch size, and nothing else.
        root: the folder from which torchvision's FashionMNIST reads.
    """
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import ToTensor

    torch.manual_seed(settings.seed)
    model = vae.build(settings)
    images = Subset(FashionMNIST(root, train=True, transform=ToTensor()), range(settings.data.num_train))
    loader = DataLoader(images, batch_size=settings.data.batch_size, shuffle=True)

    def batches(epoch: int) -> Iterator[Tensor]:
        return (batch for batch, _ in loader)

    return Loop(model, config.build(settings.objective), torch.optim.Adam(model.parameters(), lr=1e-3), batches)
