"""Alternate epochs of this project's training and of others, so that a slow machine slows all of them equally."""

import math
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vae_lab import config, results
from vae_lab.benchmark.loops import Epoch, Loop, plain
from vae_lab.config import Config, Run
from vae_lab.data import Batches, ImageData, derived_seed
from vae_lab.model import vae
from vae_lab.model.layout import channels_last
from vae_lab.training import runner
from vae_lab.training.machine import keep_freed_memory

TARGET = 0.0190
"""The training total of the best published model."""


def bare(settings: Config) -> Loop:
    """This project's training step as a plain loop, with the same weights, batches, noise and allocator."""
    keep_freed_memory()
    torch.manual_seed(settings.seed)
    model = channels_last(vae.build(settings))
    optimizer = config.build(settings.optimizer)(model.parameters())
    scheduler = config.build(settings.scheduler)(optimizer) if settings.scheduler else None
    data = config.build(settings.data)
    assert isinstance(data, ImageData)
    data.setup()
    loader = Batches(data.splits["train"].images, settings.data.batch_size, settings.seed)

    def batches(epoch: int) -> Iterator[Tensor]:
        loader.set_epoch(epoch)
        torch.manual_seed(derived_seed(settings.seed, "epoch", epoch))  # seed of the noise
        yield from cast(Iterator[Tensor], loader)

    precision = str(settings.trainer.precision)
    return Loop(model, config.build(settings.objective), optimizer, batches, scheduler, precision)


@contextmanager
def elsewhere(settings: Config, root: Path) -> Iterator[Callable[[], Epoch]]:
    """Run `loops.plain` in a separate process, which works only while its caller waits for an epoch.

    Settings of the memory allocator apply to the whole process, so in ours a plain loop would profit from our settings.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(settings.container(), root, theirs), daemon=True)
    process.start()

    def epoch() -> Epoch:
        ours.send(None)
        return Epoch(*ours.recv())

    try:
        assert ours.recv() == "ready"
        yield epoch
    finally:
        process.terminate()
        process.join()


def _serve(container: dict[str, Any], root: Path, requests: Connection) -> None:
    settings = config.validate(container)
    torch.set_num_threads(settings.trainer.threads)
    loop = plain(settings, root)
    requests.send("ready")
    while True:
        requests.recv()
        requests.send(tuple(loop.epoch()))


class Interleaved(Callback):
    """After each epoch, trains one epoch of every other loop; with `until_target` only until it reaches `TARGET`.

    The order is reversed each time, because a loop that follows an epoch of another process finds cold caches.
    """

    def __init__(self, others: Mapping[str, Callable[[], Epoch]], until_target: bool = False) -> None:
        self.others = dict(others)
        self.until_target = until_target
        self.epochs: dict[str, list[Epoch]] = {name: [] for name in others}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        order = [*self.others.items()]
        for name, epoch in order if trainer.current_epoch % 2 == 0 else reversed(order):
            done = self.epochs[name]
            if name == "bare" or not self.until_target or not done or done[-1].total > TARGET:
                done.append(epoch())


class Turn(NamedTuple):
    """One of our runs, with the epochs of the other loops that were trained between its own."""

    result: results.Result
    epochs: dict[str, list[Epoch]]

    def to_target(self, name: str) -> float | None:
        """Seconds of training until an epoch's total is at most the target; None if it never is."""
        seconds = (self.result.timing.first_step_seconds or 0.0) if name == "ours" else 0.0
        for epoch in self.epochs[name]:
            seconds += epoch.seconds
            if epoch.total <= TARGET:
                return seconds
        return None

    def pairs(self) -> list[tuple[float, float]]:
        """Seconds of our epochs, each with the mean of the bare epochs around it; without the cold first epochs."""
        ours, others = self.epochs["ours"], self.epochs["bare"]
        return [
            (ours[index].seconds, (others[index - 1].seconds + others[index].seconds) / 2)
            for index in range(2, min(len(ours), len(others)))
        ]


def take_turn(run: Run, plainly: Mapping[str, tuple[Config, Path]] | None = None) -> Turn:
    """Train one of our runs, and in turns the bare loop and the loops of `plainly`, which use `loops.plain`.

    Raises:
        RuntimeError: if the run fails.
    """
    torch.set_num_threads(run.config.trainer.threads)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        others = {"bare": bare(run.config).epoch}
        others |= {name: stack.enter_context(elsewhere(*arguments)) for name, arguments in (plainly or {}).items()}
        interleaved = Interleaved(others, until_target=True)
        result = runner.run(replace(run, directory=Path(folder)), [interleaved])
        if not result.finished:
            raise RuntimeError(f"the training that was to be measured failed: {result.error}")
        history = results.read_history(Path(folder))["train"]
    ours = [Epoch(*figures) for figures in zip(history["seconds"], history["total"], strict=True)]
    return Turn(result, {"ours": ours} | interleaved.epochs)


class Middle(NamedTuple):
    """A median with its 95 % interval, which assumes no distribution; no interval for fewer than six values."""

    n: int
    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: list[float]) -> "Middle":
        """The ends of the interval are the order statistics that contain the median in 95 % of all samples."""
        ordered, n, rank = sorted(values), len(values), 0
        while sum(math.comb(n, k) for k in range(rank + 1)) / 2**n <= 0.025:
            rank += 1
        return cls(n, median(ordered), *((ordered[rank - 1], ordered[n - rank]) if rank else (None, None)))
