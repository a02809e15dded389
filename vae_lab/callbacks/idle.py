"""What Lightning does for each hook of each callback in each step, where the hook does nothing: nothing."""

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.profilers import PassThroughProfiler

EACH_STEP = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


def without_idle_hooks(callbacks: Iterable[Callback]) -> list[Callback]:
    """The same callbacks, whose hooks of a step are None where their class has none: Lightning then passes them by.

    With eight callbacks it would open and close a profile forty times a step around functions without a body.
    """
    kept = list(callbacks)
    for callback in kept:
        _drop(callback, Callback)
    return kept


def lighten(module: LightningModule) -> None:
    """The same for a module, and the signature of its `training_step`, which Lightning looks up in each, is kept."""
    _drop(module, LightningModule)
    step = type(module).training_step
    vars(step).setdefault("__signature__", inspect.signature(step))


def _drop(owner: Callback | LightningModule, base: type) -> None:
    for hook in EACH_STEP:
        if getattr(type(owner), hook) is getattr(base, hook):
            setattr(owner, hook, None)


class Unprofiled(PassThroughProfiler):
    """Lightning's default, which profiles nothing, without the generator that it makes around every hook for that."""

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return _NOTHING


_NOTHING = nullcontext()
