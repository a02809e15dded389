"""Checks before the first run of a sweep starts; those without torch come first."""

import importlib
import os
import re
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from vae_lab import compat, results
from vae_lab.config import (
    Config,
    ConfigError,
    FolderConfig,
    Problem,
    Run,
    explain,
    fingerprint,
    flatten,
    is_complaint,
    words,
)
from vae_lab.config.composing import Composer
from vae_lab.config.sources import digest_of
from vae_lab.config.terminal import shown, watched
from vae_lab.results.reading import check_entries
from vae_lab.training import plan


def expand(config: DictConfig) -> Iterator[DictConfig]:
    """The configuration of each run of a multirun, as Hydra's basic sweeper will compose them.

    Other sweepers choose their runs as they go; for those the common part is returned. (`search` expands our own.)

    Raises:
        ConfigError: if a choice or a key does not exist.
    """
    if not str(config.hydra.sweeper.get("_target_")).endswith(".BasicSweeper"):
        yield config
        return
    arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    arguments += words(config.hydra)
    loader = GlobalHydra.instance().config_loader()
    try:
        str(config.name)  # a default name is the time: resolved now, so that all runs have the same
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        yield from map(Composer(config).run, compat.sweep_overrides(parsed))
    except Exception as error:
        if not is_complaint(error):
            raise
        raise explain(error) from error


def validated(composed: Iterable[DictConfig]) -> list[Run]:
    """The runs of these configurations.

    Raises:
        ConfigError: with every problem of every run, each reported once; or if there is no run.
    """
    runs = []
    problems: dict[Problem, list[str]] = defaultdict(list)
    count = 0
    for one in composed:
        count += 1
        try:
            runs.append(Run.of(one))
        except ConfigError as error:
            for problem in error.problems:
                problems[problem].append(" ".join(words(one.hydra)))
    if not count:
        raise ConfigError(Problem("command line", "the sweep has no run: a glob or a range in it stands for nothing"))
    if problems:
        raise ConfigError(
            *(
                problem if len(sources) == count else Problem(problem.key, f"{problem.text} (with {sources[0]})")
                for problem, sources in problems.items()
            )
        )
    return runs


def check(runs: Sequence[Run]) -> None:
    """Check runs that are each valid; torch is imported only if it is needed.

    Raises:
        ConfigError: if two runs share a folder, one has finished with another configuration, a block does not fit,
            a target or trainer argument does not exist, data is missing, or a trial of one step fails.
    """
    check_folders(runs)
    found = list(zip(runs, plan.all_finished(runs), strict=True))
    todo = [run for run, result in found if result is None]
    unmeasured = [run for run, result in found if result is not None and not plan.measured(run, result)]
    if not todo and not unmeasured:
        return
    different = {run.config.sha256(): run for run in todo}.values()
    check_import("torch")
    from vae_lab.model.match import check_fit

    check_each(different, check_fit)
    check_import("torchvision")
    from vae_lab.training import machine, runner, trial  # Lightning takes seconds more

    check_each(different, runner.check)
    check_each({run.config.metrics.model_dump_json(): run for run in unmeasured}.values(), runner.check_metrics)
    check_each({run.config.data.model_dump_json(): run for run in (*todo, *unmeasured)}.values(), runner.check_data)
    if not any(run.config.plan for run in runs):
        machine.freeze_imports()
        tried = trial.chosen(todo)
        check_runs(watched(tried, len(tried), "Trying one step of every kind of run"), trial.check)


def check_each(runs: Iterable[Run], check_one: Callable[[Config], None]) -> None:
    """Check each run's configuration; see `check_runs`."""
    check_runs(runs, lambda run: check_one(run.config))


def check_runs(runs: Iterable[Run], check_one: Callable[[Run], None]) -> None:
    """Check each run, and report the problems of all of them.

    Raises:
        ConfigError: with every problem, each reported once, and the file that it is in.
    """
    problems: dict[Problem, None] = {}
    for run in runs:
        try:
            check_one(run)
        except ConfigError as error:
            choice = {"encoder": run.encoder, "decoder": run.decoder}
            for key, text in error.problems:
                side = key.partition(".")[0]
                location = f"{key} of {choice[side]}.yaml" if ".blocks" in key or key in choice else key
                problems[Problem(location, text)] = None
    if problems:
        raise ConfigError(*problems)


def check_folders(runs: Sequence[Run]) -> None:
    """Check that each run has its own folder, and that an earlier run in it is the same run.

    Raises:
        ConfigError: if not, naming what differs or the file in the way.
    """
    problems = []
    current = _Fingerprints()
    names = sorted({run.config.name for run in runs})
    if len(names) > 1:
        problems.append(Problem("name", f"must be one for the whole sweep, but is {', '.join(names)}"))
    owners: dict[str, Run] = {}
    for run in runs:
        owner = owners.setdefault(str(run.directory), run)
        if owner is not run:
            same = " and ".join(" ".join(one.overrides) for one in (owner, run))
            problems.append(Problem("sweep", f"two runs would share the folder {shown(run.directory)}: {same}"))
            continue
        existing = next((path for path in (run.directory, *run.directory.parents) if os.path.lexists(path)), None)
        if existing is not None and not existing.is_dir():
            problem = (
                f"{shown(existing)} is no folder, but {shown(run.directory)} must be; choose another name, or remove it"
            )
            problems.append(Problem("name", problem))
            continue
        try:
            check_entries(run.directory)
        except OSError as error:
            problems.append(_unusable(error))
            continue
        result = results.read_result(run.directory)
        if result is not None and result.finished and result.config_sha256 != run.config.sha256():
            before, now = results.read_config(run.directory) or {}, run.config
            differing = _differences(before, now.container(), set(now.identity()))
            problems.append(
                Problem(
                    "name",
                    f"{shown(run.directory)} holds a finished run of another configuration ({differing}); "
                    "choose another name, or delete that folder",
                )
            )
        elif result.finished if result is not None else plan.has_checkpoint(run):  # a failed one begins anew then
            before = results.read_fingerprint(run.directory)
            changed = fingerprint.differing(before, current.of(run.config, before))
            if changed:
                state = "an interrupted" if result is None else "a finished"
                text = f"{shown(run.directory)} holds {state} run {_with_other(changed, run.config)}"
                problems.append(Problem("name", text))
    for folder in {run.directory.parents[1] for run in runs}:
        try:
            check_entries(folder)
        except OSError as error:
            problems.append(_unusable(error))
    if problems:
        raise ConfigError(*problems)


class _Fingerprints:
    """Today's fingerprints of earlier runs, each part of which is taken once."""

    def __init__(self) -> None:
        self._images: dict[str, dict[str, str]] = {}
        self._code: dict[str, str | None] = {}

    def of(self, settings: Config, before: Mapping[str, str]) -> dict[str, str]:
        """What an earlier fingerprint is to be held against."""
        code = [key for key in before if key.startswith(fingerprint.CODE)]
        for key in code:
            if key not in self._code:
                self._code[key] = digest_of(key.removeprefix(fingerprint.CODE))
        now = {key: digest for key in code if (digest := self._code[key]) is not None}
        if len(code) < len(before):
            section = settings.data.model_dump_json()
            if section not in self._images:
                self._images[section] = _images(settings)
            now |= self._images[section]
        return now


def _images(settings: Config) -> dict[str, str]:
    if fingerprint.is_told_by_files(settings.data):
        return fingerprint.of_images(settings.data)
    from vae_lab.data.fingerprint import of_images  # imports torch

    return of_images(settings.data)


def _with_other(changed: Sequence[str], settings: Config) -> str:
    """The end of a sentence: what differs from the earlier run, and the ways out."""
    names = [f"the {what}" for what in changed]
    ways = ["choose another name", "delete that folder"]
    if fingerprint.IMAGES in changed and isinstance(settings.data, FolderConfig):
        ways.append("give these images a cell of their own: data.dataset=…")
    joined = ", or ".join([", ".join(ways[:-1]), ways[-1]])
    return f"with other content than now ({', '.join(names)}); {joined}"


def _unusable(error: OSError) -> Problem:
    return Problem("name", f"{shown(Path(error.filename))} {error.strerror}; choose another name, or remove it")


def _differences(before: dict[str, Any], now: dict[str, Any], identity: set[str]) -> str:
    was, will_be = flatten(before), flatten(now)
    keys = [key for key in will_be if key in identity and was.get(key) != will_be[key]]
    keys += [key for key in was if key not in will_be]
    if "match" in before:  # it holds the matched widths, not the requested ones
        keys = [key for key in keys if not key.startswith(("encoder.", "decoder."))] or ["encoder or decoder"]
    changes = [f"{key} was {was.get(key, 'not set')!r}, is {will_be.get(key, 'not set')!r}" for key in keys]
    return "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")


def check_import(package: str) -> None:
    """Import torch or torchvision, whose builds must belong together.

    Raises:
        ConfigError: if it does not load.
    """
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError, MemoryError) as error:
        raise ConfigError(Problem("installation", import_problem(error))) from error


NO_MEMORY = re.compile(
    r"cannot allocate memory|failed to map segment|out of memory|bad_alloc|paging file", re.IGNORECASE
)


def import_problem(error: Exception) -> str:
    """Why a library cannot be imported, and what to do."""
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "not permitted" in reason:  # a disk mounted with noexec
        return f"the disk that holds the libraries permits no programs ({reason}); install them on another one"
    if isinstance(error, MemoryError) or NO_MEMORY.search(reason):
        return (
            f"there is too little memory ({reason}); end other programs, or raise the limit "
            "(ulimit -v, the memory of the job or the container)"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed ({reason}); pip install vae-lab installs all that is needed"
    if "cannot open shared object file" in reason:
        return f"a library of the system is missing ({reason}); install it, or reinstall the package that needs it"
    if not {"torch", "torchvision"} & _imported_from(error):
        return f"a library does not load ({reason}); reinstall the package that it belongs to"
    return (
        f"torch {_version('torch')} and torchvision {_version('torchvision')} do not load together ({reason}); "
        "install a pair from one source: pip install --force-reinstall torch torchvision"
    )


def _imported_from(error: Exception) -> set[str]:
    """The packages whose code the error passed through."""
    return {
        str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
