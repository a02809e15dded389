"""Lightning's training loop without what a step here does not need; what it computes is the same."""

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, optim
from torch.optim import Optimizer

from vae_lab.data import ImageModule
from vae_lab.training.module import LitVAE

KNOWN = "2.6."
"""Version of Lightning whose loop `Steps` knows; in others Lightning's own loop trains."""

HERE = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
"""Hooks of a step that callbacks here have."""
RARE = ("on_before_zero_grad", "on_before_backward", "on_after_backward")
"""The others."""


def lighten(trainer: Trainer, module: LitVAE) -> None:
    """Leave out of a training's steps what does nothing in them: the results are the same, bit by bit.

    Hooks of a step are None where neither their class nor their owner has one: Lightning then passes them by. With
    eight callbacks it would open and close a profile forty times a step around functions without a body.
    """
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in _callbacks(trainer))]:
        for hook in (*HERE, *RARE):
            if getattr(getattr(owner, hook), "__func__", None) is getattr(base, hook):
                setattr(owner, hook, None)
    if lightning.__version__.startswith(KNOWN):
        loop = trainer.fit_loop.epoch_loop
        trainer.fit_loop.epoch_loop = Steps(trainer, loop.min_steps, loop.max_steps)


def _callbacks(trainer: Trainer) -> Iterable[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]  # an attribute that the Trainer's connector sets


class Steps(_TrainingEpochLoop):
    """Lightning's loop over the steps of an epoch, with a shorter way through ordinary ones.

    Lightning's way asks in every step what does not change within a training: whether gradients are accumulated,
    clipped or scaled, who else takes part, which hooks there are. Here it is asked once an epoch; where any answer is
    yes, and in an epoch that goes on from the middle, Lightning's way is taken. What a callback changes of hooks,
    schedulers and the trainer's settings within an epoch holds from the next one on.
    """

    _short = False

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        self._short = self._is_ordinary(data_fetcher)
        if self._short:
            self._module = self.trainer.lightning_module
            self._hooks = {
                name: [hook for one in _callbacks(self.trainer) if (hook := getattr(one, name)) is not None]
                for name in HERE
            }
            configs = self.trainer.lr_scheduler_configs
            of_steps = len(configs) == 1 and configs[0].interval == "step" and configs[0].frequency == 1
            self._scheduler = configs[0].scheduler if of_steps and not configs[0].reduce_on_plateau else None
            self._ends_quickly = self._validates_at_the_end() and not any(one.reduce_on_plateau for one in configs)

    def _validates_at_the_end(self) -> bool:
        trainer = self.trainer
        by_time = trainer._val_check_time_interval is not None
        by_epochs = trainer.check_val_every_n_epoch is not None
        return by_epochs and not by_time and trainer.val_check_batch == trainer.num_training_batches

    def _is_ordinary(self, data_fetcher: _DataFetcher) -> bool:
        trainer, module = self.trainer, self.trainer.lightning_module
        return (
            not self.restarting
            and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            and type(module) is LitVAE
            and type(trainer.profiler) is Unprofiled  # a profile names what Lightning's way does
            and isinstance(trainer.datamodule, ImageModule)
            and type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) in (Precision, MixedPrecision)  # others convert what a model is given
            and getattr(trainer.precision_plugin, "scaler", None) is None
            and trainer.accumulate_grad_batches == 1
            and trainer.gradient_clip_val is None
            and steps_plainly(trainer.optimizers[0])
            and all(getattr(module, hook) is None for hook in (*HERE, *RARE))
            and all(getattr(callback, hook) is None for callback in _callbacks(trainer) for hook in RARE)
        )

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Fetch a batch and take a step."""
        if not self._short:
            super().advance(data_fetcher)
            return
        trainer, progress = self.trainer, self.batch_progress
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = self._moved(batch)
        progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        self._call("on_train_batch_start", batch, index)
        progress.increment_started()
        loss = self._step(batch, index)
        progress.increment_processed()
        if self._scheduler is None:
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
        else:
            self.scheduler_progress.increment_ready()
            self._scheduler.step()
            self.scheduler_progress.increment_completed()
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", {"loss": loss}, batch, index)
        # Where a step has logged nothing, what Lightning does of it comes to letting go of the batch.
        logged = any(self._results.metrics(on_step=True).values())
        if logged:
            trainer._logger_connector.on_batch_end()
        else:
            self._results.batch = self._results.batch_size = None
        progress.increment_completed()
        if logged:
            trainer._logger_connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Validate where it is time to."""
        trainer = self.trainer
        last = self._num_ready_batches_reached() or trainer.should_stop or trainer.received_sigterm
        if self._short and self._ends_quickly and not last:
            self._batches_that_stepped += 1
        else:
            super().on_advance_end(data_fetcher)

    def _call(self, hook: str, *arguments: Any) -> None:
        module = self._module
        before, module._current_fx_name = module._current_fx_name, hook  # where a callback logs from
        for call in self._hooks[hook]:
            call(self.trainer, module, *arguments)
        module._current_fx_name = before

    def _moved(self, batch: Any) -> Any:
        data = self.trainer.datamodule
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, self.trainer.strategy.root_device, 0)
        return data.on_after_batch_transfer(batch, 0)

    def _step(self, batch: Any, index: int) -> Tensor:
        trainer, module = self.trainer, self.trainer.lightning_module
        optimizer = trainer.optimizers[0]
        progress = self.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        with trainer.precision_plugin.train_step_context():
            loss = module.training_step(batch, index)
        progress.zero_grad.increment_ready()
        progress.zero_grad.increment_started()
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None
        progress.zero_grad.increment_completed()
        torch.autograd.backward(loss)
        self._call("on_before_optimizer_step", optimizer)
        optimizer.step()
        progress.step.increment_completed()
        detached: Tensor = loss.detach()
        return detached


def steps_plainly(optimizer: Optimizer) -> bool:
    """Whether an optimiser is one of torch's that clears as all do and, unlike L-BFGS, asks for no loss within."""
    kind = type(optimizer)
    return (
        kind.__module__.startswith(optim.__name__)
        and kind.zero_grad is Optimizer.zero_grad
        and inspect.signature(kind.step).parameters["closure"].default is None
    )


class Unprofiled(PassThroughProfiler):
    """Lightning's default, which profiles nothing, without the generator that it makes around every hook for that."""

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override]
        return _NOTHING


_NOTHING = nullcontext()
