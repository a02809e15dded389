"""An interrupted run goes on, and ends as if nothing had happened."""

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from kills import Killed
from lightning.pytorch import LightningDataModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vae_lab import config, results
from vae_lab.training import checkpoints, plan, runner
from vae_lab.training.checkpoints import CheckpointError, read_checkpoint
from vae_lab.training.module import LitVAE

# Batch normalisation, dropout, momentum and a schedule: all the kinds of state that a training has.
SMALL = (
    "latent.dim=4", "data.num_train=100", "data.num_val=20", "data.num_test=20", "data.batch_size=20",
    "trainer.max_epochs=4", "trainer.threads=1", "encoder.blocks=[{down:4},{dropout:0.2},{down:4}]",
    "decoder.blocks=[{unflatten:4},{up:4},{up:4}]", "callbacks=quiet",
)  # fmt: skip


class Shuffled(LightningDataModule):
    """A user's own data, whose order comes from torch's global generator."""

    def __init__(self, image_shape: list[int], num_train: int, batch_size: int) -> None:
        super().__init__()
        images = torch.rand(num_train, *image_shape, generator=torch.Generator().manual_seed(0))
        self.train, self.held_out = TensorDataset(images), TensorDataset(images[:10])
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, self.batch_size)

    test_dataloader = val_dataloader


FOREIGN = (
    f"data._target_={__name__}.Shuffled", *(f"~data.{key}" for key in (
        "dataset", "root", "train_images", "test_images", "num_val", "num_test", "subset", "subset_seed",
        "binarize", "binarize_seed",
    )),
)  # fmt: skip


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[config.Run, int], None]:
    """Run until a training step, counted from 1 over the whole training, and die in it."""

    def start(run: config.Run, last_step: int) -> None:
        original = LitVAE.training_step
        steps = 0

        def step(self: LitVAE, batch: Any, batch_idx: int) -> Tensor:
            nonlocal steps
            steps += 1
            if steps == last_step:
                raise Killed
            return original(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(LitVAE, "training_step", step)
            with pytest.raises(Killed):
                runner.run(run)

    return start


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, ...], Path]:
    return {}


@pytest.fixture
def undisturbed(run_of: Compose, done: dict[tuple[str, ...], Path]) -> Callable[..., Path]:
    """The folder of a run that was left alone; each is trained once for all tests."""

    def of(*extra: str) -> Path:
        if extra not in done:
            run = run_of(*SMALL, *extra, "name=whole")
            assert runner.run(run).error is None
            done[extra] = run.directory
        return done[extra]

    return of


def history_of(folder: Path) -> list[list[str]]:
    """history.csv without its seconds."""
    with open(folder / "history.csv", newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


CLOCKED = (
    "epoch_seconds", "epoch_cpu_seconds", "first_step_seconds", "epoch_images", "resumed", "monotonic_time",
)  # fmt: skip


def differences(one: Any, other: Any, place: str = "") -> Iterator[str]:
    """The places at which two checkpoints differ, seconds left out."""
    if isinstance(one, dict):
        if one.keys() != other.keys():
            yield place
        for key in one:
            if key not in CLOCKED:
                yield from differences(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list) and place.endswith(".rows"):
        yield from differences(*([[*row[:2], row[3]] for row in rows] for rows in (one, other)), f"{place}[:]")
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            yield place
        for index, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{place}[{index}]")
    elif isinstance(one, Tensor):
        if not torch.equal(one, other) or one.stride() != other.stride():
            yield place
    elif one != other:
        yield place


def assert_same(folder: Path, undisturbed: Path) -> None:
    """Weights, optimiser, schedule, counters and losses are equal to the bit."""
    assert (folder / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    assert history_of(folder) == history_of(undisturbed)
    for name in ("last.ckpt", "best.ckpt"):
        pair = (read_checkpoint(one / "checkpoints" / name) for one in (folder, undisturbed))
        assert list(differences(*pair)) == []
    one, other = (results.read_result(place) for place in (folder, undisturbed))
    assert one is not None
    assert other is not None
    assert (one.train, one.val, one.test) == (other.train, other.val, other.test)
    assert len(one.timing.epoch_seconds) == len(other.timing.epoch_seconds)


@pytest.mark.parametrize(
    ("step", "extra", "resumed"),
    [
        (13, (), [2]),  # in the middle of an epoch
        (3, (), []),  # before there was a checkpoint
        (13, FOREIGN, [2]),
        (13, ("+trainer.max_steps=17",), [2]),
        (13, ("+trainer.val_check_interval=2",), [2]),
        (13, ("+trainer.check_val_every_n_epoch=2", "scheduler=constant"), [2]),
        (13, ("data.num_val=0", "optimizer=adamw", "scheduler=cosine"), [2]),
        (13, ("logger=csv",), [2]),
        (13, ("trainer.precision=64-true",), [2]),
        (13, ("+trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"), [2]),
    ],
)
def test_a_killed_and_resumed_run_ends_like_an_undisturbed_one(
    run_of: Compose,
    killed_at: Callable[..., None],
    undisturbed: Callable[..., Path],
    step: int,
    extra: tuple[str, ...],
    resumed: list[int],
) -> None:
    run = run_of(*SMALL, *extra, "name=killed")
    killed_at(run, step)
    assert results.read_result(run.directory) is None
    torch.rand(7)  # another process would have other streams
    result = runner.run(run)
    assert (result.error, result.resumed) == (None, resumed)
    assert_same(run.directory, undisturbed(*extra))


def test_a_run_may_be_killed_repeatedly_and_moved_in_between(
    run_of: Compose, killed_at: Callable[..., None], undisturbed: Callable[..., Path]
) -> None:
    run = run_of(*SMALL, "name=killed")
    killed_at(run, 7)
    shutil.move("outputs/killed", "outputs/moved")
    run = run_of(*SMALL, "name=moved")
    killed_at(run, 3)  # before it came any further
    killed_at(run, 6)
    assert runner.run(run).resumed == [1, 2]  # one attempt got no further
    assert_same(run.directory, undisturbed())
    events = EventAccumulator(str(run.directory))
    events.Reload()
    for split, epochs in (("train", [1, 2, 3, 4]), ("val", [1, 2, 3, 4]), ("test", [4])):
        assert [event.step for event in events.Scalars(f"{split}/total")] == epochs
    assert [event.step for event in events.Scalars("time/images_per_second")] == [1, 2, 3, 4]


def test_logs_from_before_an_interruption_are_in_tensorboard_after_it(
    run_of: Compose, killed_at: Callable[..., None]
) -> None:
    run = run_of(*SMALL[:-1], "name=killed", "callbacks.pages.points=10")
    killed_at(run, 13)
    assert runner.run(run).resumed == [2]
    events = EventAccumulator(str(run.directory), size_guidance={"histograms": 0})
    events.Reload()
    for name in ("optimizer/learning_rate", "optimizer/gradient_norm"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]
    assert [event.step for event in events.Histograms("val/kl_per_dimension")] == [1, 2, 3, 4]
    assert events.PluginTagToContent("hparams")
    assert (run.directory / "projector_config.pbtxt").exists()


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt", "result.json", "model.safetensors"])
def test_a_run_may_be_killed_just_before_a_file_is_renamed(
    run_of: Compose, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At the second epoch's checkpoint or after the whole training, before the file has its name."""
    run = run_of(*SMALL, "name=killed")
    replace, seen, fatal = os.replace, 0, 2 if name.endswith(".ckpt") else 1

    def die(source: Path, target: Path) -> None:
        nonlocal seen
        seen += target.name == name
        if seen == fatal:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", die)
        with pytest.raises(Killed):
            runner.run(run)
    assert results.read_result(run.directory) is None
    result = runner.run(run)
    assert result.resumed == ([1] if name.endswith(".ckpt") else [4])
    if result.resumed == [4]:
        assert result.memory.peak_bytes is None  # nobody knows what the training took
    assert_same(run.directory, undisturbed())
    assert not list(run.directory.rglob(".*.partial*"))


def test_curves_of_earlier_epochs_are_written_again(run_of: Compose, killed_at: Callable[..., None]) -> None:
    run = run_of(*SMALL, "callbacks=default", "name=killed")
    killed_at(run, 13)
    assert runner.run(run).resumed == [2]
    events = EventAccumulator(str(run.directory))
    events.Reload()
    for name in ("train/total", "optimizer/learning_rate", "optimizer/gradient_norm"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]


def test_training_that_a_callback_stopped_early_stays_stopped(
    run_of: Compose, undisturbed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = "{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/total,patience:1,mode:max}"
    whole, run = undisturbed(f"+callbacks.stop={stop}"), run_of(*SMALL, f"+callbacks.stop={stop}", "name=killed")
    assert history_of(whole)[-1][0] == "2"

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runner, "save_weights", die)
        with pytest.raises(Killed):
            runner.run(run)
    assert runner.run(run).resumed == [2]
    assert_same(run.directory, whole)


def test_a_checkpoint_that_cannot_be_resumed_starts_the_run_again_and_says_why(
    run_of: Compose,
    killed_at: Callable[..., None],
    undisturbed: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of(*SMALL, "name=killed")
    killed_at(run, 8)
    last = run.directory / "checkpoints" / "last.ckpt"
    kept = last.read_bytes()
    assert runner.epochs_kept(run) == 1
    altered = bytearray(kept)
    middle = next(place for place in range(len(kept) // 2, len(kept)) if kept[place] != ord("Z"))  # torch's padding
    altered[middle] ^= 1
    for content in (altered, kept[:-100], kept[:5], b""):
        last.write_bytes(content)
        with pytest.raises(CheckpointError, match=re.escape(f"{last} is damaged (")):
            runner.epochs_kept(run)
        assert f"to do again, since {last} is damaged (" in plan.stage(run).note
    last.write_bytes(kept)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "device_name", lambda _: "another one")
        with pytest.raises(CheckpointError, match=r"was not written by the same run \(device was"):
            runner.epochs_kept(run)
    (last.parent / "best.ckpt").unlink()
    assert runner.run(run).resumed == []
    assert "begins anew: " in caplog.text
    assert "best.ckpt is damaged (" in caplog.text
    assert_same(run.directory, undisturbed())


def test_a_checkpoint_of_another_configuration_or_seed_is_not_resumed(
    run_of: Compose, killed_at: Callable[..., None]
) -> None:
    run = run_of(*SMALL, "name=x")
    killed_at(run, 8)
    folder = run.directory / "checkpoints"
    assert checkpoints.epochs_kept(folder, runner.origin(run)) == 1
    for other in (run_of(*SMALL, "name=x", "optimizer.lr=0.1"), run_of(*SMALL, "name=x", "seed=1")):
        with pytest.raises(CheckpointError, match=r"was not written by the same run \((configuration|seed) was"):
            checkpoints.epochs_kept(folder, runner.origin(other))


def test_a_failed_run_resumes_after_its_last_epoch(
    run_of: Compose, killed_at: Callable[..., None], undisturbed: Callable[..., Path]
) -> None:
    run = run_of(*SMALL, "name=x")
    killed_at(run, 8)
    finished = results.read_result(undisturbed())
    assert finished is not None
    results.write_result(run.directory, finished.model_copy(update={"status": "failed", "error": "a bug"}))
    assert runner.epochs_kept(run) == 1


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Code()}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last\.ckpt is damaged"):
        checkpoints.epochs_kept(tmp_path, {})
    assert not (tmp_path / "ran").exists()
