"""A test for each private name of Lightning, Hydra and torch that `vae_lab.compat` relies on.

If one fails after an upgrade, that version is not supported yet: change `compat.py`, or the bound in pyproject.toml.
"""

import inspect
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shipped
from hydra.core.plugins import Plugins
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from vae_lab import compat

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGE = Path(compat.__file__).parent

PRIVATE = {
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments": "sweep_overrides",
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.validate_batch_is_legal": "trust_checked_runs",
    "hydra.core.singleton:Singleton._instances": "find_plugins",
    "hydra.core.plugins:pkgutil": "find_plugins",
    "torch.nn.modules.batchnorm:_BatchNorm": "is_batch_norm",
    "torch.nn.modules.lazy:LazyModuleMixin": "is_lazy_module",
    "torch.nn.parameter:is_lazy": "is_lazy_tensor",
    "torch.distributions:Distribution._validate_args": "are_distributions_validated",
    "torch.utils.tensorboard.summary:hparams": "add_hyperparameters",
    "hydra._internal.config_loader_impl:ConfigLoaderImpl._apply_overrides_to_config": "with_values",
    "hydra._internal.config_loader_impl:get_overrides_dirname": "with_values",
    "torch.utils.tensorboard:SummaryWriter._get_file_writer": "add_hyperparameters",
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop.advance": "Steps",
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop.on_run_start": "Steps",
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop.on_advance_end": "Steps",
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop.update_lr_schedulers": "Steps",
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop._num_ready_batches_reached": "Steps",
    "lightning.pytorch.loops.fetchers:_DataFetcher": "Steps",
    "lightning.pytorch.loops.fetchers:_DataLoaderIterDataFetcher": "Steps",
}


def test_fused_optimisers_of_torch_take_scaled_gradients() -> None:
    optimizer: Any = torch.optim.Adam([nn.Parameter(torch.ones(1))], fused=True)
    assert optimizer._step_supports_amp_scaling  # else `unscale_before_steps` does nothing


@pytest.mark.parametrize("name", PRIVATE)
def test_each_private_name_exists(name: str) -> None:
    module, _, path = name.partition(":")
    found: Any = __import__(module, fromlist=["x"])
    for part in path.split("."):
        assert hasattr(found, part), f"{name} is gone, on which vae_lab.compat.{PRIVATE[name]} relies"
        found = getattr(found, part)


def test_each_attribute_of_a_trainer_exists() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loop = trainer.fit_loop.epoch_loop
    for owner, names in (
        (trainer, ("callbacks", "profiler", "_logger_connector", "_val_check_time_interval", "received_sigterm")),
        (trainer._logger_connector, ("on_batch_start", "on_batch_end", "update_train_step_metrics")),
        (trainer.fit_loop, ("_resuming_from_checkpoint", "epoch_loop")),
        (
            loop,
            ("restarting", "batch_progress", "scheduler_progress", "_results", "val_loop", "_batches_that_stepped",
             "automatic_optimization", "batch_idx", "min_steps", "max_steps"),
        ),
    ):  # fmt: skip
        missing = [name for name in names if not hasattr(owner, name)]
        assert not missing, f"{type(owner).__name__} has no {', '.join(missing)}, on which vae_lab.compat relies"
    progress = loop.automatic_optimization.optim_progress.optimizer
    for part in (progress.step, progress.zero_grad, loop.batch_progress, loop.scheduler_progress):
        assert hasattr(part, "increment_ready")
        assert hasattr(part, "increment_completed")


def test_the_arguments_of_the_loop_are_those_that_it_is_made_with() -> None:
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    assert list(inspect.signature(_TrainingEpochLoop.__init__).parameters)[:4] == [
        "self", "trainer", "min_steps", "max_steps",
    ]  # fmt: skip


def test_lightning_sets_the_attribute_in_every_hook() -> None:
    assert compat.SET_IN_EVERY_HOOK in vars(LightningModule())


def test_torch_says_which_modules_are_lazy_and_which_normalise_batches() -> None:
    assert compat.is_lazy_module(nn.LazyLinear(3))
    assert compat.is_lazy_tensor(nn.LazyLinear(3).weight)
    assert not compat.is_lazy_module(nn.Linear(2, 3))
    assert not compat.is_lazy_tensor(nn.Linear(2, 3).weight)
    assert compat.is_batch_norm(nn.BatchNorm2d(3))
    assert not compat.is_batch_norm(nn.GroupNorm(1, 3))


def test_hydra_knows_a_plugin_under_the_name_that_it_is_given() -> None:
    from vae_lab.search.sweeper import TARGET, Optuna, register

    register()
    assert Plugins.instance().class_name_to_class[TARGET] is Optuna


@pytest.mark.parametrize("package", ["torch", "torchvision", "lightning", "hydra-core", "omegaconf"])
def test_what_is_installed_lies_within_the_bounds_and_they_have_an_upper_end(package: str) -> None:
    rule = next(one for one in PROJECT["dependencies"] if re.match(rf"{package}\b[^-]", one))
    low, high = (tuple(map(int, end.split("."))) for end in re.findall(r"[\d.]+", rule.removeprefix(package)))
    installed = tuple(int(part) for part in re.findall(r"\d+", version(package))[:3])
    assert low <= installed < high, f"{package} {version(package)} was not tested: {rule}"


def test_private_names_are_in_one_file_only() -> None:
    private = re.compile(
        r"(from (lightning|hydra|torch|omegaconf)[\w.]*\._|\.(pytorch|core)[\w.]* import .*\b_[A-Z]|\.fit_loop\._|"
        r"epoch_loop\._|_logger_connector|_get_file_writer|Singleton|class_name_to_class|nn\.modules\.\w+\._)"
    )
    allowed = {"compat.py"}
    for path in shipped(PACKAGE):
        if path.suffix != ".py" or path.name in allowed:
            continue
        found = private.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(PACKAGE)}: {found and found[0]!r} belongs in compat.py"


def test_torch_is_one_that_is_known() -> None:
    assert tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 11)


def test_zuko_leaves_the_checks_of_torchs_distributions_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    transforms = compat.zuko_transforms()
    assert "zuko.distributions" in sys.modules
    assert {"MonotonicAffineTransform", "MonotonicRQSTransform"} <= {*vars(transforms)}
    with pytest.raises(ValueError, match="constraint"):
        torch.distributions.Normal(0.0, -1.0)
