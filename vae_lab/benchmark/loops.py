"""Trainings written out, without this project's loop. Imports no Lightning, which their start would pay for."""

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
    """The seconds of one epoch, and its total averaged over the images."""

    seconds: float
    total: float


class Loop:
    """The plainest loop over a model's training step.

    Args:
        model: what `objective` takes.
        objective: gives the total.
        optimizer: of the model's weights.
        batches: gives the batches of epoch 0, 1, …: images (b, c, h, w) in [0, 1].
        scheduler: advances once a step.
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
        """Train one epoch; `first_step` is then the time (`time.time`) at which the very first step had ended."""
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
    """What a user would write: 32-bit floats, `DataLoader` over torchvision with `ToTensor`, torch's Adam as it comes.

    Args:
        settings: whose modules, images and batch size are taken, and no other choice.
        root: folder from which torchvision's FashionMNIST reads.
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
