"""The shorter way through a step computes what Lightning's own does, and is left where it would not."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import PassThroughProfiler
from safetensors.torch import load_file

from vae_lab import compat, results
from vae_lab.training import runner

SMALL = ("data.num_train=90", "data.num_val=32", "data.num_test=32", "trainer.max_epochs=2", "trainer.threads=1",
         "data.batch_size=40", "encoder.blocks=[{down:4}]", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]",
         "latent.dim=4", "metrics.frechet=false")  # fmt: skip
STEPS = 2 * 3


class Listening(Callback):
    """Has the usual hooks of a step."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.heard.append(("start", batch_idx))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        assert all(weight.grad is not None for weight in module.parameters())
        self.heard.append(("step", trainer.global_step))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        module.log("loss_of_step", outputs["loss"])
        self.heard.append(("end", batch_idx))


class Rare(Listening):
    """Has one of those that Lightning's own way alone calls."""

    def on_after_backward(self, *arguments: Any) -> None:
        self.heard.append(("backward", 0))


@pytest.fixture
def short_ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that took the shorter way."""
    taken: list[int] = []
    step = compat.Steps._step

    def counted(self: compat.Steps, batch: Any, index: int) -> torch.Tensor:
        taken.append(index)
        return step(self, batch, index)

    monkeypatch.setattr(compat.Steps, "_step", counted)
    return taken


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / results.WEIGHTS)


@pytest.mark.parametrize("scheduler", ["one_cycle", "constant"])
def test_both_ways_train_the_same_model_bit_by_bit(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch, short_ways: list[int], scheduler: str
) -> None:
    run, other = (run_of(*SMALL, f"scheduler={scheduler}", f"name={name}") for name in ("short", "long"))
    heard, heard_there = Listening(), Listening()
    short = runner.run(run, [heard])
    assert short.finished, short.error
    assert len(short_ways) == STEPS
    monkeypatch.setattr(runner, "lighten", lambda trainer, module: None)
    monkeypatch.setattr(runner, "Unprofiled", PassThroughProfiler)
    long = runner.run(other, [heard_there])
    assert len(short_ways) == STEPS
    assert heard.heard == heard_there.heard
    assert len(heard.heard) == 3 * STEPS
    assert (short.train, short.val, short.test) == (long.train, long.val, long.test)
    there = weights(other.directory)
    assert all(torch.equal(value, there[name]) for name, value in weights(run.directory).items())
    checkpoints = [
        torch.load(one.directory / results.CHECKPOINTS / "last.ckpt", weights_only=True) for one in (run, other)
    ]
    ways = [one["loops"]["fit_loop"] for one in checkpoints]
    assert ways[0] == ways[1], "a checkpoint tells how far it is in the same way"


@pytest.mark.parametrize(
    ("more", "watching"),
    [
        (["+trainer.accumulate_grad_batches=2"], []),
        (["+trainer.gradient_clip_val=0.1"], []),
        (["trainer.precision=64-true"], []),
        (["optimizer._target_=test_loop.Own", "scheduler=constant"], []),
        (["+trainer.profiler=simple"], []),
        ([], [Rare()]),
    ],
    ids=["accumulated", "clipped", "double", "own", "profiled", "hook"],
)
def test_what_is_not_ordinary_goes_lightnings_way(
    run_of: Compose, short_ways: list[int], more: list[str], watching: list[Listening]
) -> None:
    result = runner.run(run_of(*SMALL, *more), watching)
    assert result.finished, result.error
    assert not short_ways
    assert all(one.heard.count(("backward", 0)) == STEPS for one in watching)


class Own(torch.optim.SGD):
    """An optimiser of somebody's own."""


def test_an_optimizer_that_asks_for_losses_in_its_midst_is_none_for_the_shorter_way() -> None:
    weights = [torch.zeros(1, requires_grad=True)]
    assert not compat.steps_plainly(torch.optim.LBFGS(weights))
    assert not compat.steps_plainly(Own(weights))
    assert compat.steps_plainly(torch.optim.Adam(weights))
    assert compat.steps_plainly(torch.optim.SGD(weights))


def test_another_lightning_trains_in_its_own_loop(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch, short_ways: list[int]
) -> None:
    monkeypatch.setattr("lightning.__version__", "2.7.0")
    assert runner.run(run_of(*SMALL)).finished
    assert not short_ways


def test_hooks_that_an_object_alone_has_are_called(run_of: Compose, short_ways: list[int]) -> None:
    heard: list[int] = []
    watching = LambdaCallback(on_train_batch_end=lambda *arguments: heard.append(arguments[-1]))
    assert runner.run(run_of(*SMALL), [watching]).finished
    assert heard == [0, 1, 2, 0, 1, 2]
    assert len(short_ways) == STEPS


def test_a_training_that_is_stopped_in_an_epoch_stops_there(run_of: Compose, short_ways: list[int]) -> None:
    result = runner.run(run_of(*SMALL, "+trainer.max_steps=4"))
    assert result.finished, result.error
    assert short_ways == [0, 1, 2, 0]


class Following(Callback):
    """Logs a figure each step; counts the validations; trains a further weight from the epoch's second step on."""

    def __init__(self) -> None:
        self.validated_after: list[int] = []
        self.gradients: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            module.vae.further = torch.nn.Parameter(torch.ones(()))
            trainer.optimizers[0].add_param_group({"params": [module.vae.further]})

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if hasattr(module.vae, "further"):
            module.vae.further.square().backward()
            self.gradients.append(float(module.vae.further.grad))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        module.log("figure", float(trainer.global_step))

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.validated_after.append(trainer.global_step)


class Keeping(CSVLogger):
    """Keeps what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: list[tuple[int | None, float]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.given += [(step, metrics["figure"])] if "figure" in metrics else []


@pytest.mark.parametrize(
    ("more", "validated_after"),
    [([], [3, 6]), (["+trainer.val_check_interval=1"], [1, 2, 3, 4, 5, 6]), (["+trainer.max_steps=4"], [3])],
    ids=["by epochs", "by steps", "stopped"],
)
def test_what_a_step_logs_comes_to_the_loggers_and_validations_when_they_are_due(
    run_of: Compose,
    short_ways: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    more: list[str],
    validated_after: list[int],
) -> None:
    seen: list[tuple[list[tuple[int | None, float]], list[int], list[float]]] = []
    for short in (True, False):
        logger, following = Keeping(tmp_path), Following()
        monkeypatch.setattr(runner, "opened", lambda *_: nullcontext([logger]))  # noqa: B023
        if not short:
            monkeypatch.setattr(runner, "lighten", lambda trainer, module: None)
        words = ("scheduler=constant", "+trainer.log_every_n_steps=1", f"name=way_{short:d}", *more)
        result = runner.run(run_of(*SMALL, *words), [following])
        assert result.finished, result.error
        seen.append((logger.given, following.validated_after, following.gradients))
    assert seen[0] == seen[1]
    given, validated, gradients = seen[0]
    assert [figure for _, figure in given] == [float(step) for step in range(1, len(short_ways) + 1)]
    assert validated == validated_after
    assert max(gradients) <= 2, "gradients of a step are cleared before the next"
