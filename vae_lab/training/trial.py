"""A trial before the first run: one step of everything that a run does, in a scratch folder.

It is the run itself, by the same runner, with one batch of each split: data, model, objective, optimiser, scheduler,
callbacks, checkpoints, test, metrics and files. So whatever would fail after an hour of training fails here.
"""

import contextlib
import errno
import inspect
import io
import json
import logging
import os
import pkgutil
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.seed import isolate_rng
from pydantic import BaseModel

from vae_lab import config, results
from vae_lab.config import Config, ConfigError, FolderConfig, Node, Problem, Run
from vae_lab.config.terminal import shown
from vae_lab.model.match import matched
from vae_lab.training import runner
from vae_lab.training.callbacks import History
from vae_lab.training.inspection import Inspection
from vae_lab.training.module import LossError

LONGEST_ERROR = 400
"""Characters of an error that a message quotes."""

SCRATCH_LOGGERS = ("lightning.pytorch.loggers.TensorBoardLogger", "lightning.pytorch.loggers.CSVLogger")
"""Loggers that write to their folder and nowhere else; in a trial others are replaced by one that does nothing."""

NO_LOGGER = "lightning.pytorch.loggers.logger.DummyLogger"


def chosen(runs: Iterable[Run]) -> list[Run]:
    """The runs of which a trial each is enough.

    Together they train every encoder and every decoder in all its surroundings, the other settings of the runs. The
    networks share nothing but the codes, whose shape has been checked. Seeds, folders and numbers such as rates need no
    trials of their own.
    """
    parts = [(run, _parts(run)) for run in runs]
    done, found = set[str](), list[Run]()
    for new in (2, 1):  # first those that try an encoder and a decoder at once
        for run, both in parts:
            if len(both - done) >= new:
                done |= both
                found.append(run)
    return found


def _parts(run: Run) -> set[str]:
    """A run's encoder in its surroundings, and its decoder."""
    moved = _moved(run.config.container(), str(run.directory), "")
    for name in ("seed", "name", "published"):
        moved.pop(name, None)
    moved["logger"] = sorted(node.target for node in (run.config.logger or {}).values())
    networks = [{side: moved.pop(side)} for side in ("encoder", "decoder")]
    return {json.dumps(_without_rates(moved | network), sort_keys=True) for network in networks}


def _without_rates(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_rates(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_rates(one) for one in value]
    return "a number" if isinstance(value, float) else value


def check(run: Run) -> None:
    """Try one step of a run. Prints nothing, keeps no file, and leaves the random state as it was.

    If the trial fails with one batch of validation and test images, it is repeated with all of them, since a user's
    metric or callback may need more.

    Raises:
        ConfigError: if it fails, or the batches are not what the configuration says.
    """
    try:
        problem, is_sure = _problem(run, limit=1)
        if problem is not None and not is_sure:
            problem, _ = _problem(run, limit=1.0)
    except OSError:  # no room for the trial's files, which says nothing about those of the run
        return
    if problem is not None:
        raise ConfigError(problem)


def _problem(run: Run, limit: float) -> tuple[Problem | None, bool]:
    """What is wrong, and whether it would be with all images, too."""
    with _silent(), isolate_rng(), tempfile.TemporaryDirectory(prefix="vae_lab-trial-") as folder:
        for name, node in (run.config.logger or {}).items():
            if not node.target.startswith("lightning."):
                try:
                    config.build(_in_folder(node, run, folder))
                except Exception as error:  # a user's logger may raise anything
                    text = f"cannot be built ({_short(f'{type(error).__name__}: {error}')})"
                    return Problem(f"logger.{name}", text), True
        look, place = Inspection(run.config), Path(folder)
        history = History(on_epoch=lambda rows: results.write_history(place, rows))
        moved = replace(run, config=_limited(run, folder, limit), directory=place)
        try:
            measured = runner.attempt(moved, moved.config, history, [look], goes_on=False)
        except LossError:  # a matter of rates and seeds, which trials do not judge: the run itself may fail of it
            return None, True
        except Exception as error:  # the user's classes may raise anything
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            return look.problem or _explained(run, error), look.problem is not None
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if "train" not in look.seen and _trains(run.config):
            text = "train_dataloader gives no batch: is the batch larger than the data, with drop_last?"
            return Problem("data", text), True
        return _unwritten(place, measured) or _failed_metric(run.config, measured), False


def _trains(settings: Config) -> bool:
    given = settings.trainer.model_extra or {}
    return given.get("limit_train_batches", 1) != 0 and given.get("max_steps", -1) != 0


def _unwritten(folder: Path, measured: dict[str, Any]) -> Problem | None:
    """The problem with a model whose weights were not written, which ends no run."""
    if (folder / results.WEIGHTS).exists():
        return None
    text = _short("; ".join(measured["warnings"]))
    if os.strerror(errno.ENOSPC) in text:
        raise OSError(errno.ENOSPC, text)
    return Problem("run", f"its weights cannot be written: {text}")


def _failed_metric(settings: Config, measured: dict[str, Any]) -> Problem | None:
    """The problem with a user's metric; ours may need a trained model, or more images."""
    names = [*settings.metrics.further]
    if measured["metrics"] is not None or not names:
        return None
    name = f"metrics.further.{names[0]}" if len(names) == 1 else "metrics.further"
    return Problem(name, f"fails for an untrained model: {_short(measured['warnings'][0])}")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _limited(run: Run, folder: str, limit: float) -> Config:
    """The configuration of the trial: one step, one process, its files in another folder.

    Our own callbacks are left out: they only log what fails in them.
    """
    match = matched(run.config)
    settings = match.config if match else run.config
    trainer = settings.trainer
    given = trainer.model_dump()
    for name in ("profiler", "enable_progress_bar", "enable_model_summary", "overfit_batches", "val_check_interval"):
        given.pop(name, None)
    none = [split for split in ("train", "val", "test") if given.get(f"limit_{split}_batches", 1) == 0]
    given |= {f"limit_{split}_batches": 0 if split in none else limit for split in ("val", "test")}
    given |= {
        "limit_train_batches": 0 if "train" in none else 1,
        "check_val_every_n_epoch": 1,
        "max_steps": min(1, given.get("max_steps", 1)) if given.get("max_steps", 1) >= 0 else 1,
        "devices": trainer.devices[:1] if isinstance(trainer.devices, list) else 1,
    }
    data = settings.data
    if isinstance(data, FolderConfig):  # every file has been checked
        data = data.model_copy(update={"in_memory": False, "workers": 0})
    asked = settings.metrics
    return settings.model_copy(
        update={
            "trainer": type(trainer).model_validate(given),
            "data": data,
            "logger": {
                name: _in_folder(node, run, folder)
                if node.target in SCRATCH_LOGGERS
                else Node.model_validate({"_target_": NO_LOGGER})
                for name, node in (settings.logger or {}).items()
            },
            "callbacks": {
                name: _in_folder(node, run, folder)
                for name, node in (settings.callbacks or {}).items()
                if not (node.target.startswith("vae_lab.") or _searches(node))
            },
            "metrics": asked.model_copy(
                update={"iwae": asked.iwae and [1], "probe": False, "samplers": False, "frechet": False}
            ),
        }
    )


def _in_folder(node: Node, run: Run, folder: str) -> Node:
    """A node whose files go to the scratch folder: paths in the run's folder, and where checkpoints are wanted."""
    values = _moved(node.model_dump(), str(run.directory), folder)
    return type(node).model_validate(values | ({"dirpath": folder} if values.get("dirpath") else {}))


def _moved(value: Any, place: str, folder: str) -> Any:
    if isinstance(value, dict):
        return {name: _moved(one, place, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [_moved(one, place, folder) for one in value]
    return folder + value[len(place) :] if isinstance(value, str) and value.startswith(place) else value


def _searches(node: Node) -> bool:
    """Whether a callback takes many steps of its own before training."""
    found = pkgutil.resolve_name(node.target) if "." in node.target else None
    return isinstance(found, type) and issubclass(found, (BatchSizeFinder, LearningRateFinder))


def _explained(run: Run, error: Exception) -> Problem:
    """The problem of a failed trial under the section whose class is deepest in the traceback."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    files = [file for file, _ in frames]
    depths = {}
    for name, node in run.config.nodes().items():
        with contextlib.suppress(Exception):  # a builtin has no file
            file = inspect.getsourcefile(pkgutil.resolve_name(node.model_dump()["_target_"]))
            depths[name] = len(files) - files[::-1].index(str(file))
    text = _short(f"{type(error).__name__}: {error}")
    called = [
        name for name, node in run.config.nodes().items() if f"{_class_of(node)}." in text
    ]  # with wrong arguments
    name = max(depths, key=lambda one: depths[one], default=called[0] if called else "run")
    file, line = frames[depths[name] - 1] if depths else ("", 0)
    where = f", in line {line} of {shown(Path(file))}" if depths and "site-packages" not in file else ""
    return Problem(name, f"a trial of one step fails ({text}{where}), so {run} would fail too")


def _class_of(node: BaseModel) -> str:
    return str(node.model_dump()["_target_"]).rpartition(".")[2]


def _short(error: str) -> str:
    text = " ".join(error.split())
    return text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]}…"
