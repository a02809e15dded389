"""Our part of Lightning's training loop; `compat` has the shorter path through its steps."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler

from vae_lab import compat
from vae_lab.data import ImageModule
from vae_lab.training.module import LitVAE


def lighten(trainer: Trainer, module: LitVAE) -> None:
    """Skip the parts of a training step that do nothing; the results are bitwise the same."""
    compat.lighten(trainer, module, _is_ours)


def _is_ours(trainer: Trainer) -> bool:
    # A profiler needs Lightning's own path, whose actions it names.
    return (
        type(trainer.lightning_module) is LitVAE
        and isinstance(trainer.datamodule, ImageModule)  # type: ignore[attr-defined]  # set by the Trainer's connector
        and type(trainer.profiler) is Unprofiled  # type: ignore[attr-defined]
    )


class Unprofiled(PassThroughProfiler):
    """Lightning's default profiler, which profiles nothing, without its cost of one generator per hook."""

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return _NOTHING


_NOTHING = nullcontext()
