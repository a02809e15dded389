"""All code that relies on private names of Lightning, Hydra or torch: the one place to check for a new version.

`tests/test_compat.py` tests each of these names, and `pyproject.toml` has the versions that they were tested with.
The libraries are imported where they are used, since the commands need parts of Hydra long before torch.
"""

import copy
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loops.fetchers import _DataFetcher
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
    from omegaconf import DictConfig
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.tensorboard import SummaryWriter
else:
    _TrainingEpochLoop = object

# --- Hydra -------------------------------------------------------------------------------------------------


def sweep_overrides(overrides: Sequence[Any]) -> list[list[str]]:
    """The overrides of each run of a multirun, as Hydra's basic sweeper splits them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return [list(one) for one in BasicSweeper.split_arguments(list(overrides), None)[0]]


def with_values(composed: "DictConfig", values: "Sequence[Override]", overrides: "Sequence[Override]") -> "DictConfig":
    """A copy of a run's configuration with further values, as if Hydra had composed it with all its overrides.

    Args:
        composed: the configuration without those values.
        values: the overrides to apply, none of which chooses from a group.
        overrides: all overrides of the run, for what Hydra records of them.

    Raises:
        HydraException: if a key does not exist.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname

    made = copy.deepcopy(composed)
    ConfigLoaderImpl._apply_overrides_to_config([*values], made)
    tasks = [one for one in overrides if not one.is_hydra_override()]
    made.hydra.overrides.task = [one.input_line for one in tasks]
    made.hydra.job.override_dirname = get_overrides_dirname(tasks, **made.hydra.job.config.override_dirname)
    return made


def trust_checked_runs() -> None:
    """Stop Hydra's basic sweeper from composing every run once more to validate it, in this process."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    BasicSweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]


def find_plugins(skipped: set[str]) -> None:
    """Let Hydra search for its plugins without some modules of `hydra_plugins`. It searches once per process."""
    from hydra.core.plugins import Plugins
    from hydra.core.singleton import Singleton

    if Plugins not in Singleton._instances:
        with _skipping(skipped):
            Plugins.instance()


@contextmanager
def _skipping(modules: set[str]) -> Iterator[None]:
    from hydra.core import plugins

    class Finder:
        @staticmethod
        def walk_packages(*arguments: Any, **options: Any) -> Iterator[pkgutil.ModuleInfo]:
            for found in pkgutil.walk_packages(*arguments, **options):
                if found.name.removeprefix("hydra_plugins.").partition(".")[0] not in modules:
                    yield found

    vars(plugins)["pkgutil"] = Finder  # the name that Hydra's module calls
    try:
        yield
    finally:
        vars(plugins)["pkgutil"] = pkgutil


def name_plugin(name: str, plugin: type) -> None:
    """Register a plugin with Hydra under a name in the package `hydra_plugins`, the only one that Hydra accepts."""
    from hydra.core.plugins import Plugins

    Plugins.instance().class_name_to_class[name] = plugin


# --- torch -------------------------------------------------------------------------------------------------


def is_batch_norm(layer: "nn.Module") -> bool:
    """Whether a layer is one of torch's batch normalisations, for vectors, maps or volumes."""
    from torch import nn

    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def is_lazy_module(module: "nn.Module") -> bool:
    """Whether a module is one of torch's lazy modules, which create their weights at the first input."""
    from torch.nn.modules.lazy import LazyModuleMixin

    return isinstance(module, LazyModuleMixin)


def is_lazy_tensor(tensor: "Tensor") -> bool:
    """Whether a weight has no shape yet."""
    from torch.nn.parameter import is_lazy

    return bool(is_lazy(tensor))


def are_distributions_validated() -> bool:
    """Whether torch's distributions check their arguments by default; torch has no public function for it."""
    from torch.distributions import Distribution

    return bool(Distribution._validate_args)


def zuko_transforms() -> Any:
    """The transformations of zuko. Its import turns off the checks of torch's distributions, which is undone here."""
    from torch.distributions import Distribution

    before = Distribution._validate_args, vars(Distribution)["arg_constraints"]
    try:
        from zuko import transforms
    finally:
        Distribution._validate_args, Distribution.arg_constraints = before  # type: ignore[method-assign]
    return transforms


def unscale_before_steps(optimizer: "Optimizer") -> None:
    """Let the scaler of 16-bit training give an optimiser gradients in their own scale, also if it is a fused one."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def add_hyperparameters(writer: "SummaryWriter", parameters: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Write what TensorBoard's HPARAMS page needs into a run's own event file; `add_hparams` starts another one."""
    from torch.utils.tensorboard.summary import hparams

    make: Any = hparams  # untyped in torch
    untyped: Any = writer
    for summary in make(dict(parameters), dict.fromkeys(metrics, 0)):  # the page reads the values from the scalars
        untyped._get_file_writer().add_summary(summary)


# --- Lightning ---------------------------------------------------------------------------------------------

SET_IN_EVERY_HOOK = "_current_fx_name"
"""An attribute of a module that Lightning sets around every hook; `nn.Module.__setattr__` is slow."""


def start_epoch_afresh(trainer: "Trainer") -> None:
    """Start the first epoch after a checkpoint like any other.

    Lightning starts it with an iterator from before the epoch's seeding, and with `max_steps` treats it as finished.
    """
    trainer.fit_loop._resuming_from_checkpoint = False
    trainer.fit_loop.epoch_loop.restarting = False


KNOWN = "2.6."
"""The version of Lightning whose loop `Steps` supports; with others Lightning's own loop trains."""

STEP_HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
"""Hooks of a step that our callbacks implement."""
RARE_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward")
"""The other hooks of a step."""


def lighten(trainer: "Trainer", module: "LightningModule", is_ours: Callable[["Trainer"], bool]) -> None:
    """Remove empty work from the training steps; the results are the same bit for bit.

    Hooks of a step that nobody overrides are set to None: Lightning then skips them. With eight callbacks it would
    open and close a profile forty times per step around empty functions.

    Args:
        trainer: the trainer.
        module: the module that it trains.
        is_ours: whether module, data and profiler are those that `Steps` supports.
    """
    import lightning
    from lightning.pytorch import Callback, LightningModule
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the Trainer's connector
    for owner, base in [(module, LightningModule), *((callback, Callback) for callback in callbacks)]:
        for hook in (*STEP_HOOKS, *RARE_HOOKS):
            if getattr(getattr(owner, hook), "__func__", None) is getattr(base, hook):
                setattr(owner, hook, None)
    if lightning.__version__.startswith(KNOWN):
        loop = trainer.fit_loop.epoch_loop
        kind: Any = type("Steps", (Steps, _TrainingEpochLoop), {"is_ours": staticmethod(is_ours)})
        trainer.fit_loop.epoch_loop = kind(trainer, loop.min_steps, loop.max_steps)


class Steps(_TrainingEpochLoop):
    """Lightning's loop over the steps of an epoch, with a shorter path through ordinary ones.

    In every step Lightning checks conditions that do not change during training: whether gradients are accumulated,
    clipped or scaled, whether other processes take part, which hooks exist. Here they are checked once per epoch. If
    any answer is yes, or the epoch resumes in the middle, Lightning's own path is taken. Changes that a callback makes
    to hooks, schedulers and trainer settings during an epoch take effect in the next one.
    """

    is_ours: Callable[["Trainer"], bool]
    """Whether module, data and profiler are those that the shorter path supports."""
    _short = False

    def on_run_start(self, data_fetcher: "_DataFetcher") -> None:
        super().on_run_start(data_fetcher)
        self._short = self._is_ordinary(data_fetcher)
        if self._short:
            self._module = self.trainer.lightning_module
            self._hooks = {
                name: [hook for one in self.trainer.callbacks if (hook := getattr(one, name)) is not None]
                for name in STEP_HOOKS
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

    def _is_ordinary(self, data_fetcher: "_DataFetcher") -> bool:
        from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
        from lightning.pytorch.plugins.precision import MixedPrecision, Precision
        from lightning.pytorch.strategies import SingleDeviceStrategy

        trainer, module = self.trainer, self.trainer.lightning_module
        return (
            not self.restarting
            and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
            and type(self).is_ours(trainer)
            and type(trainer.strategy) is SingleDeviceStrategy
            and type(trainer.precision_plugin) in (Precision, MixedPrecision)  # others convert the model's input
            and getattr(trainer.precision_plugin, "scaler", None) is None
            and trainer.accumulate_grad_batches == 1
            and trainer.gradient_clip_val is None
            and steps_plainly(trainer.optimizers[0])
            and all(getattr(module, hook) is None for hook in (*STEP_HOOKS, *RARE_HOOKS))
            and all(getattr(callback, hook) is None for callback in trainer.callbacks for hook in RARE_HOOKS)
        )

    def advance(self, data_fetcher: "_DataFetcher") -> None:
        """Fetch a batch and take a step."""
        if not self._short:
            super().advance(data_fetcher)
            return
        trainer, progress = self.trainer, self.batch_progress
        self.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = self._transferred(batch)
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
        # If a step logged nothing, Lightning only has to release the batch.
        logged = any(self._results.metrics(on_step=True).values())
        if logged:
            trainer._logger_connector.on_batch_end()
        else:
            self._results.batch = self._results.batch_size = None
        progress.increment_completed()
        if logged:
            trainer._logger_connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: "_DataFetcher") -> None:
        """Validate if it is due."""
        trainer = self.trainer
        last = self._num_ready_batches_reached() or trainer.should_stop or trainer.received_sigterm
        if self._short and self._ends_quickly and not last:
            self._batches_that_stepped += 1
        else:
            super().on_advance_end(data_fetcher)

    def _call(self, hook: str, *arguments: Any) -> None:
        module = self._module
        before, module._current_fx_name = module._current_fx_name, hook  # callbacks log under this name
        for call in self._hooks[hook]:
            call(self.trainer, module, *arguments)
        module._current_fx_name = before

    def _transferred(self, batch: Any) -> Any:
        data = self.trainer.datamodule
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, self.trainer.strategy.root_device, 0)
        return data.on_after_batch_transfer(batch, 0)

    def _step(self, batch: Any, index: int) -> "Tensor":
        import torch

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


def steps_plainly(optimizer: "Optimizer") -> bool:
    """Whether an optimiser is torch's or ours, with the usual `zero_grad` and no closure, which L-BFGS requires."""
    from torch import optim

    kind = type(optimizer)
    return (
        kind.__module__.startswith((f"{optim.__name__}.", "vae_lab."))
        and kind.zero_grad is optim.Optimizer.zero_grad
        and inspect.signature(kind.step).parameters["closure"].default is None
    )
