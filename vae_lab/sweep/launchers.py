"""Hydra's launchers: load them, fit them to a sweep, and pass the command's surroundings to its runs.

A launcher starts runs in other processes, perhaps on other machines. Results must not depend on that: the values that a
configuration takes from the machine are those of the command's machine, wherever a run is trained.
"""

import importlib
import importlib.util
import inspect
import multiprocessing
import os
import pkgutil
import re
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from vae_lab import compat
from vae_lab.config import (
    ConfigError,
    Inherited,
    Problem,
    Run,
    cores,
    precision,
    register_resolvers,
)
from vae_lab.config.terminal import protect_streams
from vae_lab.training.processes import exit_text


class Plugin(NamedTuple):
    """A Hydra plugin with launchers: its package, its module in `hydra_plugins`, and our extra that installs it."""

    package: str
    module: str
    extra: str


JOBLIB = Plugin("hydra-joblib-launcher", "hydra_joblib_launcher", "local")
SUBMITIT = Plugin("hydra-submitit-launcher", "hydra_submitit_launcher", "slurm")
RAY = Plugin("hydra-ray-launcher", "hydra_ray_launcher", "ray")
LAUNCHERS = {
    "local": JOBLIB,
    "joblib": JOBLIB,
    "slurm": SUBMITIT,
    "submitit_slurm": SUBMITIT,
    "submitit_local": SUBMITIT,
    "ray": RAY,
    "ray_aws": RAY,
}
"""The choices of `hydra/launcher` other than `basic`, which is Hydra's own and trains one run after another."""

NAMING = re.compile(r"[+~]*(hydra/launcher|hydra/hydra_launcher|hydra|experiment)(@[^=]*)?=(.*)")
ELSEWHERE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "hydra.searchpath", "defaults")
"""Arguments with which a user's files may choose a launcher."""


def prepare(words: Sequence[str]) -> None:
    """Load the plugin of the launcher that a command line chooses, and no other.

    Hydra would import all installed plugins, and copy their options once for every group that `--help` shows.

    Raises:
        ConfigError: if the chosen one is not installed.
    """
    chosen, may_be_any = set[str](), False
    for word in words:
        named = NAMING.fullmatch(word)
        if named and named[1] == "hydra/launcher":
            chosen.add(named[3].strip("'\""))
        elif named or word.lstrip("+~").startswith(ELSEWHERE):
            may_be_any = True
    wanted = [LAUNCHERS[name] for name in sorted(chosen) if name in LAUNCHERS]
    for name in sorted(chosen):
        plugin = LAUNCHERS.get(name)
        if plugin is not None and not _installed(plugin):
            problem = f"{name} needs the package {plugin.package}, which is not installed"
            remedy = f"pip install 'vae-lab[{plugin.extra}]', or pip install {plugin.package}"
            raise ConfigError(Problem("hydra/launcher", f"{problem}: {remedy}"))
    compat.find_plugins({one.module for one in LAUNCHERS.values()})
    for plugin in filter(_installed, {*LAUNCHERS.values()} if may_be_any else wanted):
        _load(plugin)


def _installed(plugin: Plugin) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin.module}") is not None
    except ModuleNotFoundError:  # no plugin at all is installed
        return False


def _load(plugin: Plugin) -> None:
    """Import a plugin as Hydra does, and register its launchers."""
    package = importlib.import_module(f"hydra_plugins.{plugin.module}")
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found.name.rpartition(".")[2].startswith("_"):
            for member in vars(importlib.import_module(found.name)).values():
                if inspect.isclass(member) and issubclass(member, Launcher) and not inspect.isabstract(member):
                    Plugins.instance().register(member)


def offer(error: Exception) -> None:
    """Add the launchers of skipped plugins to Hydra's error about a launcher that does not exist."""
    group = str(getattr(error, "missing_cfg_file", "")).rpartition("/")[0]
    if group == "hydra/launcher" and isinstance(error, MissingConfigException):
        available = [name for name, plugin in LAUNCHERS.items() if _installed(plugin)]
        error.options = sorted({*(error.options or ()), *available})


class Taken(NamedTuple):
    """The cores and GPUs that the largest run of a sweep uses."""

    cores: int
    gpus: int

    @classmethod
    def by(cls, runs: Sequence[Run]) -> Self:
        """The cores and GPUs that these runs use; a run on GPUs uses one per process."""
        settings = [run.config.trainer for run in runs]
        return cls(
            max(one.threads * one.processes for one in settings),
            max(one.processes if one.accelerator in ("gpu", "cuda") else 0 for one in settings),
        )

    def tell(self) -> None:
        """Set the values that the presets of `conf/hydra/launcher` read."""
        Inherited.update(cores_of_a_run=self.cores, gpus_of_a_run=self.gpus)


def fit(hydra_config: DictConfig, taken: Taken) -> str:
    """Fit a sweep's launcher to its runs.

    We have no preset for Ray's plugin: each of its tasks would count as one core, however many threads a run has.

    Returns:
        A sentence about how many runs there will be at once; empty for Hydra's own launcher.
    """
    taken.tell()
    name, launcher = str(hydra_config.runtime.choices.get("hydra/launcher")), hydra_config.launcher
    if name in ("ray", "ray_aws"):
        os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # the runs log similar lines, and all are needed
        with open_dict(launcher):
            launcher.ray.remote.setdefault("num_cpus", taken.cores)
            launcher.ray.remote.setdefault("num_gpus", taken.gpus)
            if launcher.ray.init.get("address") is not None:  # Ray rejects the plugin's store size
                launcher.ray.init.setdefault("object_store_memory", None)
    if LAUNCHERS.get(name) is not JOBLIB:
        return "" if name == "basic" else f"Launcher {name}: {_resources(taken)}."
    at_once = int(launcher.n_jobs)
    at_once = at_once if at_once > 0 else max(1, cores() + 1 + at_once)
    each = f"each with {taken.cores} of {cores()} cores"
    if at_once > 1:
        return f"Launcher {name}: {at_once} runs at once, {each}."
    most = "" if taken.cores == 1 else "; trainer.threads=1 would run more at once, and is part of what makes a result"
    return f"Launcher {name}: one run at a time, {each}{most}."


def _resources(taken: Taken) -> str:
    gpus = f" and {taken.gpus} GPU{'s' if taken.gpus > 1 else ''}" if taken.gpus else ""
    return f"each run takes {taken.cores} core{'s' if taken.cores > 1 else ''} (trainer.threads){gpus}"


@dataclass(frozen=True)
class Surroundings:
    """The folder, import path and values of the sweep's process, which each of its runs gets in any process.

    They are collected when the sweep's callback is pickled, and restored when it is unpickled.
    """

    folder: str = field(default_factory=os.getcwd)
    import_path: tuple[str, ...] = field(default_factory=lambda: tuple(entry or os.getcwd() for entry in sys.path))
    inherited: Inherited = field(
        default_factory=lambda: replace(
            Inherited.here, cores=cores(), precision=precision(), runs=Inherited.here.runs or 1, is_worker=True
        )
    )

    def restore(self) -> None:
        """Apply them to this process."""
        Inherited.here = self.inherited
        protect_streams()
        known = multiprocessing.get_all_start_methods()
        if multiprocessing.get_start_method() not in known:  # joblib's starts no other processes than its own
            multiprocessing.set_start_method(known[0], force=True)
        sys.path.extend(entry for entry in self.import_path if entry not in sys.path)
        if os.path.isdir(self.folder):
            os.chdir(self.folder)  # so that a relative outputs/ is the command's
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends its launcher
        register_resolvers()


def failure(error: Exception) -> str:
    """The error of a launcher, in one sentence."""
    codes = re.search(r"exit codes of the workers are \{\w+\((-?\d+)\)", str(error))
    if codes:  # joblib's
        return f"a process {exit_text(int(codes[1]))}"
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0].rstrip('.')}" if words else type(error).__name__
