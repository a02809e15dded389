"""The learning rate's schedule: how long it is, and torch's schedulers for a training of any length."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder, Timer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from vae_lab.config import optimizer_steps

REFUSED = {
    BatchSizeFinder: "trains with another batch size than config.yaml says; give data.batch_size",
    LearningRateFinder: "trains with another learning rate than config.yaml says; give optimizer.lr",
}
"""Callbacks that change what the configuration of a run says."""


class ScheduleError(ValueError):
    """A schedule that does not fit the training."""


def refused(callback: Any) -> str | None:
    """Why a callback cannot be part of a run; None if it can."""
    return next((reason for kind, reason in REFUSED.items() if isinstance(callback, kind)), None)


def steps_of(trainer: Trainer) -> int:
    """The number of optimiser steps that a trainer will take; loads its training data.

    Raises:
        ScheduleError: if nothing says how many, or a time limit may end the training earlier.
    """
    remedy = "take scheduler=constant, or limit the training by +trainer.max_steps"
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the Trainer's connector
    if any(isinstance(one, Timer) and one.time_remaining() is not None for one in callbacks):
        raise ScheduleError(f"the scheduler needs the number of steps, but a time limit ends this training; {remedy}")
    steps = trainer.estimated_stepping_batches
    if steps in (math.inf, -1):
        reason = "the training data do not say how many batches they have"
        raise ScheduleError(f"the scheduler needs the number of steps, but {reason}; {remedy}")
    factors = next((one.scheduling for one in callbacks if isinstance(one, GradientAccumulationScheduler)), None)
    if factors is None or trainer.max_epochs is None or trainer.num_training_batches == math.inf:
        return max(1, int(steps))
    return optimizer_steps(int(trainer.num_training_batches), trainer.max_epochs, factors, trainer.max_steps)


def schedule(
    make: Callable[..., LRScheduler], optimizer: Optimizer, arguments: Mapping[str, Any] | None = None
) -> LRScheduler:
    """Build a scheduler that works for any number of steps.

    torch's `OneCycleLR` divides by zero if its rise takes exactly one step or all of them, and gives a single step its
    last rate, about zero. Here the rise takes a billionth more or less, and a single step is the first of two.

    Raises:
        TypeError: if what is built is no scheduler of torch.
    """
    arguments = dict(arguments or {})
    if isinstance(make, functools.partial) and make.func is OneCycleLR:
        given = make.keywords | arguments
        steps, rise = given.get("total_steps"), given.get("pct_start", 0.3)
        if steps == 1:
            steps = arguments["total_steps"] = 2
        if isinstance(steps, int) and isinstance(rise, float):
            if rise * steps == 1:
                arguments["pct_start"] = rise * (1 + 1e-9)
            elif rise == 1:
                arguments["pct_start"] = 1 - 1e-9
    built: Any = make(optimizer, **arguments)
    if not isinstance(built, LRScheduler):
        raise TypeError(f"must be one of torch.optim.lr_scheduler, but is a {type(built).__name__}")
    return built
