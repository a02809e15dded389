"""One run, from its configuration to `result.json`."""

import importlib.util
import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.plugins.precision import DoublePrecision

from vae_lab import __version__, config, results
from vae_lab.config import Config, ConfigError, Position, Problem, Run
from vae_lab.config.fingerprint import differing
from vae_lab.config.identity import changes_results
from vae_lab.data import DataError, fingerprint, shards
from vae_lab.data.devices import on_gpu
from vae_lab.evaluation.symptoms import kl_divisor, symptoms
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.describe import Description, describe, matching, text
from vae_lab.model.distributions import unvalidated
from vae_lab.model.layout import channels_last
from vae_lab.model.match import Matched, matched
from vae_lab.model.weights import save_weights
from vae_lab.training import checkpoints, parts, processes, schedules
from vae_lab.training.callbacks import History, Quality, Together
from vae_lab.training.loggers import hyperparameters, opened
from vae_lab.training.loop import Unprofiled, lighten
from vae_lab.training.machine import device_name, environment, keep_freed_memory, reset_peak_memory, search_no_gpu
from vae_lab.training.module import LitVAE

log = logging.getLogger(__name__)

# Lightning's warnings that do not apply: images are on the device already, and the logging interval is one epoch.
QUIET = (
    "smaller than the logging interval",
    "Checkpoint directory .* exists",
    "You defined a `validation_step` but have no `val_dataloader`",  # data.num_val=0
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "It is recommended to use `self.log\\(.*sync_dist=True",  # averages are combined before they are logged
    "Grad strides do not match bucket view strides",  # weights are channels last
)


# Lightning's loggers that need a package which is an extra of this project.
LOGGERS = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}

READERS = ("prior", "objective", "optimizer")
"""Sections whose objects can read the weights of a whole model, beside callbacks.

Callbacks that only watch, and metrics, do not count: with other layouts sums are rounded otherwise, and these must not
change a result.
"""
LAYOUTS_KNOWN = ("vae_lab.", "torch.", "lightning.")
"""Packages whose code reads weights in any layout, except for L-BFGS."""

# Our own progress bar and files replace these.
SILENT = {"num_sanity_val_steps": 0, "enable_progress_bar": False, "enable_model_summary": False}


@contextmanager
def _quiet() -> Iterator[None]:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in QUIET:
            warnings.filterwarnings("ignore", message=f".*{message}")
        yield


def check(settings: Config) -> None:
    """Check the targets of a valid configuration and their arguments.

    Raises:
        ConfigError: if one cannot be built or does not fit.
    """
    config.check_targets(settings)
    with _quiet():
        _check_trainer(settings)
        _check_parts(settings)


def check_metrics(settings: Config) -> None:
    """Check the test metrics that a finished run lacks.

    Raises:
        ConfigError: if a function does not exist or has the name of another figure.
    """
    config.check_targets(settings, ("metrics",))
    parts.check_metrics(settings)


def check_data(settings: Config) -> None:
    """Find, download and read the images once.

    Raises:
        ConfigError: if that fails.
    """
    fingerprint.forget()
    try:
        config.build(settings.data).prepare_data()
    except DataError as error:
        raise ConfigError(Problem("data", str(error))) from error
    except Exception as error:  # a user's data module may raise anything
        raise ConfigError(Problem("data", f"cannot be read ({type(error).__name__}: {error})")) from error


def _check_trainer(settings: Config) -> None:
    config.check_trainer(settings.trainer, Trainer)
    processes.check(settings)
    if settings.trainer.processes > 1 and not torch.distributed.is_available():
        problem = f"must be 1: torch {torch.__version__} is built without torch.distributed"
        raise ConfigError(Problem("trainer.devices", problem))
    accelerator = settings.trainer.accelerator
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        problem = f"is {accelerator!r}, but torch {torch.__version__} finds no GPU here; take trainer=default"
        raise ConfigError(Problem("trainer.accelerator", problem))
    try:
        Trainer(**SILENT | _arguments(settings), logger=False, enable_checkpointing=False)
    except Exception as error:  # Lightning raises its own and many others
        raise ConfigError(Problem("trainer", f"Lightning's Trainer refuses it: {error}")) from error


def _check_parts(settings: Config) -> None:
    """Build every part of a run once, the optimiser with one weight, and compute one loss on the meta device."""
    with _reported_under("objective"), shapes_only():
        parts.check(settings)
    with _reported_under("optimizer"):
        optimizer = config.build(settings.optimizer)([torch.nn.Parameter(torch.zeros(1, 1))])
    if settings.scheduler is not None:
        with _reported_under("scheduler"):
            schedules.schedule(config.build(settings.scheduler), optimizer)
    for name, node in (settings.logger or {}).items():
        package = LOGGERS.get(node.target.rpartition(".")[2])
        if package and importlib.util.find_spec(package) is None:
            problem = f"needs the package {package}, which is not installed: pip install 'vae-lab[{package}]'"
            raise ConfigError(Problem(f"logger.{name}", f"{problem}, or pip install {package}"))
    for name, node in (settings.callbacks or {}).items():
        with _reported_under(f"callbacks.{name}"):
            reason = schedules.refused(config.build(node))
        if reason is not None:
            raise ConfigError(Problem(f"callbacks.{name}", f"{node.target} {reason}"))


@contextmanager
def _reported_under(key: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a target may raise anything
        raise ConfigError(Problem(key, f"cannot be built ({type(error).__name__}: {error})")) from error


def run(run: Run, watching: Sequence[Callback] = ()) -> results.Result:
    """Train, validate, test and record one run; an error is recorded, not raised.

    An interrupted run resumes after its last complete epoch, and its results are as if it had not been interrupted. The
    callbacks in `watching` come after those of the configuration.

    Raises:
        OSError: if its files cannot be written.
    """
    folder, started = run.directory, time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    contents = fingerprint.complete(run.config)
    try:
        epochs = epochs_kept(run)
        changed = differing(results.read_fingerprint(folder), contents)
        if epochs and changed:
            raise checkpoints.CheckpointError(f"its checkpoint was written with other content ({', '.join(changed)})")
    except checkpoints.CheckpointError as reason:
        log.warning("%s begins anew: %s", run, reason)
        epochs = 0
    results.clear(folder, keep_checkpoints=epochs > 0)
    match = matched(run.config)
    settings = match.config if match else run.config
    results.write_config(folder, settings.container())
    results.write_fingerprint(folder, contents)
    history = History(on_epoch=lambda rows: results.write_history(folder, rows))
    not_written = []
    try:
        described = describe(settings)
        try:
            results.write_text(folder / results.MODEL, text(described, matching(settings, match)))
        except OSError as failure:
            not_written.append(results.not_written(results.MODEL, failure))
        if settings.trainer.processes > 1:
            assert not watching, "callbacks of this process do not see the processes of a run"
            measured = processes.train(run, settings, goes_on=epochs > 0, on_history=history.take)
        else:
            measured = attempt(run, settings, history, watching, goes_on=epochs > 0)
        measured["model"] = _size(described, _match_record(settings, match))
        measured["warnings"] += not_written
        error = None
    except processes.RankError as failure:
        with suppress(OSError):
            results.write_text(folder / results.TRACEBACK, failure.traceback or f"{failure.error}\n")
        measured, error = {}, failure.error
    except Exception as failure:  # whatever a user's block or the machine raises, the other runs continue
        with suppress(OSError):
            results.write_text(folder / results.TRACEBACK, traceback.format_exc())
        measured, error = {}, _error_text(failure)
    position = Position.current()
    result = results.Result(
        status="failed" if error else "finished",
        error=error,
        cell=run.cell,
        encoder=run.encoder,
        decoder=run.decoder,
        seed=run.config.seed,
        position=position.number if position else None,
        overrides=list(run.overrides),
        config_sha256=run.config.sha256(),
        resumed=history.resumed,
        wall_seconds=time.monotonic() - started,
        environment=environment(run.config),
        files=results.checksums(folder),
        **{"terms": {}, "nats": None, "divergence": None} | _recorded(history, run.config) | measured,
    )
    results.write_result(folder, result)
    return result


def _error_text(failure: Exception) -> str:
    """An error in one line; that of a process which reads data holds a whole traceback."""
    text = str(failure).strip() or "no message"
    if "Original Traceback" in text:
        text = f"{text.splitlines()[-1].strip()} (in a process that reads data)"
    if "shared memory" in text or "Bus error" in text:
        text += "; /dev/shm is too small: data.workers=0 does without it, docker run --shm-size=1g makes it larger"
    return text if text.startswith(f"{type(failure).__name__}: ") else f"{type(failure).__name__}: {text}"


def _recorded(history: History, settings: Config) -> dict[str, Any]:
    """The fields that every run has, finished or failed: its timing and the last losses of each split."""
    timing = results.Timing(
        train_seconds=sum(history.epoch_seconds) if history.epoch_seconds else None,
        epoch_seconds=history.epoch_seconds,
        first_step_seconds=history.first_step_seconds,
        images_per_second=history.images_per_second,
        cpu_share=None if on_gpu(settings) else history.cpu_share(settings.trainer.threads),
    )
    kinds = {"train": results.Losses, "val": results.Losses, "test": results.Test}
    return {"timing": timing} | {split: kind(**_losses(history, split)) for split, kind in kinds.items()}


def _losses(history: History, split: str) -> dict[str, float]:
    row = history.last(split)
    return row.terms if row else {}


def origin(run: Run) -> dict[str, Any]:
    """What must match to resume from a checkpoint: the results depend on nothing else."""
    return {
        "configuration": run.config.sha256(),
        "seed": run.config.seed,
        "vae_lab": __version__,
        "torch": str(torch.__version__),  # else a class of torch, which safe loading refuses
        "device": device_name(run.config),
    }


def epochs_kept(run: Run) -> int:
    """The epoch after which a run resumes, whatever ended its earlier attempt; 0 without one.

    Raises:
        CheckpointError: if its checkpoint cannot be used.
    """
    return checkpoints.epochs_kept(run.directory / results.CHECKPOINTS, origin(run))


class _Group(LightningEnvironment):
    """Informs Lightning about the processes that `processes` has started."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return shards.mine().rank


def _arguments(settings: Config) -> dict[str, Any]:
    """The arguments of Lightning's `Trainer`; our own code splits batches between processes, so Lightning must not."""
    arguments = settings.trainer.arguments()
    if settings.trainer.processes == 1:
        return arguments
    return {"sync_batchnorm": on_gpu(settings)} | arguments | {"use_distributed_sampler": False}


def _are_weights_read(settings: Config) -> bool:
    """Whether code reads the weights that may need them contiguous: a user's, or L-BFGS, which makes them a vector."""
    container = settings.container()
    callbacks = {name: node for name, node in (container["callbacks"] or {}).items() if changes_results(node)}
    readers = {key: node for key, node in container.items() if key in READERS} | {"callbacks": callbacks}
    targets = [value for key, value in config.flatten(readers).items() if key.endswith("_target_")]
    return any(not target.startswith(LAYOUTS_KNOWN) or target == "torch.optim.LBFGS" for target in targets)


def attempt(
    run: Run, settings: Config, history: History, watching: Sequence[Callback] = (), *, goes_on: bool
) -> dict[str, Any]:
    """Train, validate and test a run in this process, alone or as one of several processes.

    Args:
        run: the run.
        settings: its configuration, with the matched widths.
        history: its clock and record.
        watching: further callbacks.
        goes_on: whether to resume from its last checkpoint.

    Returns:
        The measured fields of `results.Result`; empty in all processes but the first.
    """
    folder, part = run.directory, shards.mine()
    keep_freed_memory()
    search_no_gpu()
    reset_peak_memory()
    torch.set_num_threads(settings.trainer.threads)
    seed_everything(settings.seed_of("init"), verbose=False)
    model = channels_last(vae.build(settings), weights=not _are_weights_read(settings))
    module = LitVAE(
        model,
        config.build(settings.objective),
        config.build(settings.optimizer),
        config.build(settings.scheduler) if settings.scheduler else None,
        settings.seed_of("noise"),
        run.lengths,
    )
    data = config.build(settings.data)
    data.seed = settings.seed_of("order")
    arguments = _arguments(settings)
    has_validation = getattr(settings.data, "num_val", 1) > 0
    validated = {} if has_validation else {"limit_val_batches": 0}
    checkpoint_folder = folder / results.CHECKPOINTS
    parameters = hyperparameters(run)
    quality = Quality(settings, parameters, history)
    nodes = (settings.logger or {}).values() if part.is_first else ()
    with _quiet(), unvalidated(), opened(nodes, parameters) as loggers:
        trainer = Trainer(
            **SILENT | {"profiler": Unprofiled()} | arguments | validated,
            default_root_dir=folder,
            logger=loggers,
            callbacks=[
                *([Together()] if part.processes > 1 else []),
                history,
                quality,
                *(config.build(node) for node in (settings.callbacks or {}).values()),
                checkpoints.Checkpoints(checkpoint_folder, origin(run), "val" if has_validation else "train"),
                *watching,
            ],
            plugins=[checkpoints.CheckpointFiles(), *([_Group()] if part.processes > 1 else [])],
        )
        if isinstance(trainer.precision_plugin, DoublePrecision):
            trainer.precision_plugin.convert_module(module)  # before Lightning loads a checkpoint, not after
        lighten(trainer, module)
        whole = {"objective": module.objective, "posterior": model.posterior, "likelihood": model.likelihood}
        stats_warnings = shards.apart(
            model,
            normalizes=not arguments.get("sync_batchnorm"),
            others=[name for name, one in whole.items() if one.needs_whole_batch],
        )
        for warning in stats_warnings if part.is_first else ():
            log.warning("%s: %s", run, warning)
        last = str(checkpoint_folder / checkpoints.LAST) if goes_on else None
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
        tested_epoch = trainer.current_epoch
        if settings.test_weights == "best" and (checkpoint_folder / checkpoints.BEST).exists():
            tested_epoch = checkpoints.load_best(module, checkpoint_folder)
        trainer.test(module, datamodule=data, verbose=False)
    if not part.is_first:
        return {}
    try:
        save_weights(model, folder / results.WEIGHTS)
    except Exception as error:  # a full disk, or a user's module whose state is not tensors only
        module.not_written(results.WEIGHTS, error)
    recorded = _recorded(history, settings)
    trained_here = history.resumed[-1:] != [len(history.epoch_seconds)]  # else only the test ran here
    return {
        "tested_epoch": tested_epoch,
        "test": recorded["test"].model_copy(update=quality.figures),
        "timing": recorded["timing"].model_copy(update={"metrics_seconds": quality.seconds}),
        "metrics": None if quality.error else settings.metrics.model_dump(),
        "warnings": [
            *([quality.error] if quality.error else []),
            *symptoms(
                quality.figures,
                results.kl_of_epochs(
                    results.read_history(folder), kl_divisor(module.objective.units, model.latent_dim)
                ),
                model.latent_dim,
            ),
            *stats_warnings,
            *module.warnings,
        ],
        "terms": module.objective.units_for(model.posterior),
        "nats": model.likelihood.data if module.objective.measures(model) else None,
        "divergence": quality.divergence,
        "memory": results.Memory(peak_bytes=quality.peak_bytes if trained_here else None),
    }


def _size(described: Description, match: dict[str, Any] | None) -> results.Model:
    return results.Model(
        parameters=described.parameters,
        **{f"{row.key}_parameters": row.parameters for row in described.rows if row.level == 0},
        flops_per_image=described.flops,
        match=match,
    )


def _match_record(settings: Config, found: Matched | None) -> dict[str, Any] | None:
    if found is None:
        return None
    record = settings.match.model_dump(include={"cost", "encoder", "decoder"})
    return record | {f"{side}_ratio": ratio for side, ratio in found.ratios.items()}
