"""A schedule is as long as the training, whatever makes the training longer or shorter."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder, Timer
from runs import settings
from test_module import store
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, IterableDataset

from vae_lab import config
from vae_lab.config import ConfigError
from vae_lab.data import Batches
from vae_lab.model import vae
from vae_lab.training import runner
from vae_lab.training.module import LitVAE
from vae_lab.training.schedules import ScheduleError

LINEAR = ("encoder.blocks=[{dense:2}]", "decoder.blocks=[{dense:2},{unflatten:1}]")
SMALL = settings(("name=x", "encoder=mlp", "decoder=mlp", "latent.dim=2", *LINEAR)).config
ONE_CYCLE = partial(OneCycleLR, max_lr=0.005, total_steps=4, pct_start=0.2, div_factor=5)


class Rates(Callback):
    """Notes the learning rate of each optimiser step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def rates(
    scheduler: Callable[[Optimizer], LRScheduler],
    lengths: tuple[str, ...],
    loader: Any = None,
    callbacks: tuple[Callback, ...] = (),
    **arguments: Any,
) -> list[float]:
    """The learning rates of a training of two epochs, of two batches each unless a loader is given."""
    torch.manual_seed(0)
    made = config.build(SMALL.objective), config.build(SMALL.optimizer)
    module, noted = LitVAE(vae.build(SMALL), *made, scheduler, lengths=lengths), Rates()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, callbacks=[noted, *callbacks],
        **{"max_epochs": 2} | quiet | arguments,
    )  # fmt: skip
    trainer.fit(module, Batches(store(32), 16, 0) if loader is None else loader, Batches(store(8), 8))
    return noted.seen


def torch_rates(steps: int) -> list[float]:
    """The rates of the default schedule for a training of this many steps, as torch computes them."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 0.005)
    scheduler = OneCycleLR(optimizer, max_lr=0.005, total_steps=steps, pct_start=0.2, div_factor=5)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(torch.rand(32, 1, 28, 28))


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28)


@pytest.mark.parametrize(
    ("steps", "arguments", "loader", "callbacks"),
    [
        (4, {}, None, []),
        (7, {"max_steps": 7, "max_epochs": 9}, None, []),
        (3, {"limit_train_batches": 1, "max_epochs": 3}, None, []),
        (6, {"overfit_batches": 2, "max_epochs": 3}, None, []),
        (2, {"accumulate_grad_batches": 2}, None, []),
        (4, {"max_epochs": 3}, None, [lambda: GradientAccumulationScheduler({0: 2, 2: 1})]),
        (6, {}, lambda: DataLoader(images(50), batch_size=16, drop_last=True), []),
        (14, {}, lambda: DataLoader(images(50), batch_size=8), []),
        (3, {"max_steps": 3}, lambda: DataLoader(Endless(), batch_size=16), []),
    ],
)
def test_a_schedule_is_as_long_as_the_training(
    steps: int, arguments: Mapping[str, Any], loader: Any, callbacks: list[Callable[[], Callback]]
) -> None:
    given = {"loader": loader and loader(), "callbacks": tuple(make() for make in callbacks)}
    assert rates(ONE_CYCLE, ("total_steps",), **given, **arguments) == torch_rates(steps)


def warm_up(optimizer: Optimizer, rise: int, total: int) -> LRScheduler:
    """Linear up, then half a cosine down: a user's own function."""
    first = LambdaLR(optimizer, lambda step: (step + 1) / (rise + 1))
    return SequentialLR(optimizer, [first, CosineAnnealingLR(optimizer, max(1, total - rise))], [rise])


@pytest.mark.parametrize("steps", [1, 2, 5, 6])
@pytest.mark.parametrize(
    ("scheduler", "length"),
    [
        (ONE_CYCLE, "total_steps"),
        (partial(OneCycleLR, max_lr=0.005, total_steps=4, pct_start=0.5, three_phase=True), "total_steps"),
        (partial(OneCycleLR, max_lr=0.005, total_steps=4, pct_start=0.0), "total_steps"),
        (partial(OneCycleLR, max_lr=0.005, total_steps=4, pct_start=1.0), "total_steps"),
        (partial(CosineAnnealingLR, T_max=4), "T_max"),
        (partial(warm_up, rise=2, total=4), "total"),
    ],
)
def test_any_number_of_steps_can_be_scheduled(
    scheduler: Callable[[Optimizer], LRScheduler], length: str, steps: int
) -> None:
    found = rates(scheduler, (length,), max_steps=steps, max_epochs=9)
    assert len(found) == steps
    assert all(0 <= rate <= 0.005 for rate in found)
    assert found[0] > 1e-4
    if steps > 3:
        assert max(found) > 0.0035
        assert found[-1] < max(found)


def test_a_schedule_of_unknown_length_is_refused() -> None:
    with pytest.raises(ScheduleError, match="do not say how many batches they have; take scheduler=constant"):
        rates(ONE_CYCLE, ("total_steps",), DataLoader(Endless(), batch_size=16))
    with pytest.raises(ScheduleError, match="a time limit ends this training"):
        rates(ONE_CYCLE, ("total_steps",), callbacks=(Timer("00:01:00:00"),))
    assert len(rates(partial(LambdaLR, lr_lambda=lambda step: 1.0), (), max_time="00:01:00:00")) == 4


def test_a_schedule_may_go_by_the_validation_total() -> None:
    found = rates(partial(ReduceLROnPlateau, patience=0, threshold=10, threshold_mode="abs"), (), max_epochs=3)
    assert found == [0.005] * 4 + [pytest.approx(0.0005)] * 2


TIMER = "+callbacks.stop={_target_:lightning.pytorch.callbacks.Timer,duration:'00:00:01:00'}"


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("+trainer.max_time=00:00:01:00", "trainer.max_time", "take scheduler=constant"),
        (TIMER, "callbacks.stop", "ends a training after a time"),
        ("+trainer.max_steps=0", "trainer.max_steps", "at least 1, or -1 for no limit, but is 0"),
        ("+trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches", "at least 1, but is 0"),
        ("+trainer.limit_train_batches=0.01", "trainer.limit_train_batches", "one batch or more, but is 0.01 of 47"),
        ("+trainer.overfit_batches=ten", "trainer.overfit_batches", "or the fraction of them, 0 to 1, but is 'ten'"),
    ],
)
def test_lengths_that_cannot_be_are_refused_before_anything_runs(
    run_of: Compose, override: str, key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        run_of(override)
    assert [problem.key for problem in raised.value.problems] == [key]
    assert words in raised.value.problems[0].text


def test_a_time_limit_suits_a_schedule_without_a_length(run_of: Compose) -> None:
    run_of("+trainer.max_time=00:00:01:00", "scheduler=constant")


class Subclassed(LearningRateFinder):
    """A user's."""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("lightning.pytorch.callbacks.BatchSizeFinder", "give data.batch_size"),
        ("lightning.pytorch.callbacks.LearningRateFinder", "give optimizer.lr"),
        (f"{__name__}.Subclassed", "give optimizer.lr"),
    ],
)
def test_callbacks_that_change_what_the_configuration_says_are_refused(
    run_of: Compose, target: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"callbacks.find: {target} trains with another .*; {words}"):
        runner.check(run_of(f"+callbacks.find={{_target_:{target}}}").config)
