"""Runs that are killed in their second epoch, and resumed."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file

from vae_lab import results
from vae_lab.config import Run
from vae_lab.results import Result
from vae_lab.training import runner


class Killed(BaseException):
    """Ends a run where a signal would: nothing that handles errors sees it."""


class Killer(Callback):
    """Ends the process's run in its second epoch."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            raise Killed


def check_resuming(whole: Run, run: Run) -> tuple[Result, Result]:
    """Train `whole`; kill `run` and resume it. Their weights must be equal to the last bit; gives both results."""
    undisturbed = runner.run(whole)
    assert undisturbed.finished, undisturbed.error
    with pytest.raises(Killed):
        runner.run(run, [Killer()])
    result = runner.run(run)
    assert result.finished, result.error
    assert result.resumed == [1]
    weights, there = (load_file(one.directory / results.WEIGHTS) for one in (whole, run))
    assert weights.keys() == there.keys()
    assert all(torch.equal(value, there[name]) for name, value in weights.items())
    return undisturbed, result
