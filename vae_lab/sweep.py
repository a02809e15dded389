"""The Hydra callback: every run is checked before the first one starts, and summed up after the last."""

import importlib
import os
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from vae_lab import launchers, plan, results, search
from vae_lab.config import (
    SWEEP_RUNS,
    Config,
    ConfigError,
    MetricsConfig,
    Problem,
    Run,
    explain,
    flatten,
    is_complaint,
    words,
)

MOST_COLUMNS = 4
"""Runs whose test metrics are shown in the terminal."""

MOST_HOLES = 10
"""Missing runs that are told in the terminal; the report has them all."""


class SweepCallback(Callback):
    """Checks before, a table and the exit code after; for a single run as for a multirun.

    Hydra swallows what a callback raises, so that problems are printed here and end the process with 1.
    """

    started: ClassVar[list["SweepCallback"]] = []

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.launcher = "basic"

    def __getstate__(self) -> dict[str, Any]:
        """What goes with a run to another process: not the other runs."""
        return {"surroundings": launchers.Surroundings()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        state["surroundings"].restore()

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the run."""
        if search.is_chosen(config):
            stop(ConfigError(Problem("hydra/sweeper", "a search makes several runs: add -m to the command")))
        self._start([config], is_sweep=False)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check all runs of the sweep, and fit the launcher to them."""
        planned = self._plan_search(config) if search.is_chosen(config) else None
        if planned is None:
            self._start(expand(config), is_sweep=True)
        with _ending_on_error():
            self.launcher = str(config.hydra.runtime.choices.get("hydra/launcher"))
            sentence = launchers.fit(config.hydra, launchers.Taken.by(self.runs))
            if sentence:
                Console().print(sentence, soft_wrap=True, highlight=False, markup=False)
        if planned is not None:
            self.runs = planned.runs  # which become more

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum up the run."""
        self._end()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum up the sweep."""
        self._end()

    def _start(self, composed: Iterable[DictConfig], *, is_sweep: bool) -> None:
        with _ending_on_error():
            self.runs = validated(composed)
            check(self.runs)
            only_plan = any(run.config.plan for run in self.runs)
            if is_sweep or only_plan:
                show_plan(self.runs, all_runs=only_plan)
            if only_plan:
                raise SystemExit(0)
            self.started[:] = [self]
            os.environ.pop(SWEEP_RUNS, None)
            if len(self.runs) > 1:
                os.environ[SWEEP_RUNS] = str(len(self.runs))

    def _plan_search(self, config: DictConfig) -> search.Planned:
        """Check the runs where a search reaches furthest, and those that it has made."""
        with _ending_on_error():
            planned = search.plan(config)
            self.runs = validated(planned.corners())
            planned.check(self.runs)
            check(self.runs)
            check_folders(planned.runs)
            for line in planned.lines():
                Console().print(line, soft_wrap=True, highlight=False, markup=False)
            if any(run.config.plan for run in self.runs):
                raise SystemExit(0)
            self.started[:] = [self]
            os.environ[SWEEP_RUNS] = str(max(planned.options.n_trials, len(planned.record.trials)))
        return planned

    def _end(self) -> None:
        self.started.clear()
        with _ending_on_error():
            os.environ.pop(SWEEP_RUNS, None)
            found = [(run, results.read_result(run.directory)) for run in self.runs]
            unfinished = [(run, result) for run, result in found if result is None or not result.finished]
            elsewhere = [run for run, _ in unfinished if results.holder(run.directory)]
            failed = [
                (told(run.directory), (result.error or "no reason recorded") if result else "left no result.json")
                for run, result in unfinished
                if run not in elsewhere
            ]
            failed += [
                (told(run.directory), "its test metrics were not completed")
                for run, result in found
                if result is not None and result.finished and not plan.measured(run, result)
            ]
            written = False
            try:
                written = show_report(sorted({run.directory.parents[1] for run in self.runs}))
            finally:
                if elsewhere:
                    count = f"{len(elsewhere)} run{'s are' if len(elsewhere) > 1 else ' is'}"
                    Console().print(f"{count} in the hands of other processes, which report on them when they end.")
                if failed:
                    from vae_lab import report

                    Console().print(report.failures(failed))
            if failed or not written:
                raise SystemExit(1)


def show_plan(runs: Sequence[Run], *, all_runs: bool) -> None:
    """Print what is about to be done."""
    folder = told(runs[0].directory.parents[1])
    for line in plan.lines([plan.stage(run) for run in runs], folder, all_runs=all_runs):
        Console().print(line, soft_wrap=True, highlight=False, markup=False)


def show_report(folders: Sequence[Path], out: Path | None = None, *, all_pictures: bool = False) -> bool:
    """Write the report of the runs under these folders and show what it found; False if that could not be done."""
    from vae_lab import report  # pandas, scipy and matplotlib take seconds
    from vae_lab.results.study import StudyError, find

    console = Console()
    try:
        find(folders)
        # Another process may be at it, and the last one to read the runs must be the last one to write.
        with results.in_turn(report.place(folders) if out is None else out):
            prepared = report.prepare(folders)
            for table in (
                report.summary(prepared.study, prepared.statistics),
                *report.details(prepared.study, prepared.statistics),
            ):
                console.print(table)
            place = report.write(prepared, out, all_pictures=all_pictures)
    except (StudyError, OSError) as error:
        Console(stderr=True).print(f"No report: {error}", soft_wrap=True, highlight=False, markup=False)
        return False
    missing = [f"{hole.run}: {hole.reason}" for hole in prepared.study.holes]
    if len(missing) > MOST_HOLES:
        missing[MOST_HOLES:] = [f"{len(missing) - MOST_HOLES} more missing runs: see the report"]
    wrong = [*missing, *prepared.study.symptoms, *prepared.study.notes]
    for sign, sentences, style in (("•", prepared.findings, ""), ("!", wrong, "yellow")):
        for sentence in sentences:
            if "`" in sentence:  # a command, to be copied in one piece
                console.print(f"{sign} {sentence.replace('`', '')}", soft_wrap=True, highlight=False, markup=False)
                continue
            hanging = Table.grid(padding=(0, 1, 0, 0))
            hanging.add_row(Text(sign, style), Text(sentence, style))
            console.print(hanging)
    console.print()
    for folder in folders:
        console.print(f"Files: {told(folder)}", soft_wrap=True, highlight=False, markup=False)
    page = told(place / "report.html")
    console.print(f"Report: {page}", soft_wrap=True, highlight=False, markup=False)
    return True


def show_evaluation(
    folders: Sequence[Path], asked: MetricsConfig, allow: Sequence[str], device: str, root: str | None
) -> bool:
    """Measure the finished runs under these folders and show their test metrics; False if one could not be measured."""
    from vae_lab import report
    from vae_lab.results.foreign import LoadError
    from vae_lab.results.study import StudyError, find

    errors = Console(stderr=True)
    try:
        found = find(folders)
    except StudyError as error:
        errors.print(f"Nothing measured: {error}", soft_wrap=True, highlight=False, markup=False)
        return False
    check_import("torch")
    from vae_lab.data import DataError
    from vae_lab.evaluation import evaluate

    measured: list[tuple[str, results.Result]] = []
    for folder in track(found, "measuring", console=errors, transient=True, disable=not errors.is_terminal):
        try:
            measured.append((told(folder), evaluate(folder, asked, allow, device, root)))
        except (LoadError, DataError, OSError) as error:
            errors.print(f"Not measured: {error}", soft_wrap=True, highlight=False, markup=False)
        except Exception as error:  # a stranger's files may hold anything, and the other runs are measured all the same
            told_error = f"{told(folder)} ({type(error).__name__}: {error})"
            errors.print(f"Not measured: {told_error}", soft_wrap=True, highlight=False, markup=False)
    if measured:
        Console().print(report.measured(measured[:MOST_COLUMNS]))
        if len(measured) > MOST_COLUMNS:
            Console().print(f"and {len(measured) - MOST_COLUMNS} more runs, in their result.json")
        again = " ".join(dict.fromkeys(told(folder.parents[1]) for folder in found))
        Console().print(f"The report with them: vae-lab report {again}", soft_wrap=True, highlight=False, markup=False)
    return len(measured) == len(found)


def give_up(error: OSError) -> NoReturn:
    """Tell which file cannot be read or written, sum up what has been done, and end the process with 1."""
    place = f": {error.filename}" if error.filename else ""
    sentence = f"Stopped: {error.strerror or error}{place}. The same command with the same name goes on."
    Console(stderr=True).print(sentence, soft_wrap=True, highlight=False, markup=False)
    _sum_up()


def launched() -> bool:
    """Whether a sweep is under way whose launcher is a plugin's: what is raised then is the launcher's."""
    return any(callback.launcher != "basic" for callback in SweepCallback.started)


def end_without(failure: str) -> NoReturn:
    """Tell that the launcher cannot go on, sum up what has been done, and end the process with 1."""
    sweep = SweepCallback.started[0]
    has_begun = any(run.directory.exists() for run in sweep.runs)
    kept = "The same command with the same name goes on." if has_begun else "Nothing was run."
    sentence = f"Stopped by the launcher {sweep.launcher}: {failure}. {kept}"
    Console(stderr=True).print(sentence, soft_wrap=True, highlight=False, markup=False)
    if has_begun:
        _sum_up()
    raise SystemExit(1)


def _sum_up() -> NoReturn:
    for callback in [*SweepCallback.started]:
        if callback.runs:  # else a search ended before its first
            callback._end()
    raise SystemExit(1)


@contextmanager
def _ending_on_error() -> Iterator[None]:
    """Print an error and end the process: Hydra would warn, go on and exit with 0."""
    try:
        yield
    except ConfigError as error:
        stop(error)
    except OSError as error:
        SweepCallback.started.clear()
        give_up(error)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def told(folder: Path) -> str:
    """A folder as a person would write it from here."""
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)


def expand(config: DictConfig) -> Iterator[DictConfig]:
    """The configuration of each run of a multirun, as Hydra's basic sweeper will compose them.

    Other sweepers choose their runs as they go; of those the common part is given. (Of ours `search` knows more.)

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
        str(config.name)  # a default name is the time: found now, so that all runs have the same
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        for overrides in BasicSweeper.split_arguments(parsed, None)[0]:
            yield loader.load_sweep_config(config, list(overrides))
    except Exception as error:
        if not is_complaint(error):
            raise
        raise explain(error) from error


def validated(composed: Iterable[DictConfig]) -> list[Run]:
    """The runs of these configurations.

    Raises:
        ConfigError: with every problem of every run, each told once; or if there is no run.
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
                problem if len(where) == count else Problem(problem.key, f"{problem.text} (with {where[0]})")
                for problem, where in problems.items()
            )
        )
    return runs


def check(runs: Sequence[Run]) -> None:
    """What can be wrong with runs that are valid one by one; torch is imported once it is needed.

    Raises:
        ConfigError: if two runs share a folder, one has finished with another configuration, a block does not fit,
            a target or trainer argument does not exist, or data is missing.
    """
    check_folders(runs)
    found = list(zip(runs, plan.all_finished(runs), strict=True))
    todo = [run for run, result in found if result is None]
    unmeasured = [run for run, result in found if result is not None and not plan.measured(run, result)]
    if not todo and not unmeasured:
        return
    different = {run.config.sha256(): run for run in todo}.values()
    check_import("torch")
    from vae_lab.match import check_fit

    tell_all(different, check_fit)
    check_import("torchvision")
    from vae_lab import experiment  # Lightning takes seconds more

    tell_all(different, experiment.check)
    tell_all({run.config.data.model_dump_json(): run for run in (*todo, *unmeasured)}.values(), experiment.check_data)


def tell_all(runs: Iterable[Run], check_one: Callable[[Config], None]) -> None:
    """Check each run, and tell what is wrong with all of them.

    Raises:
        ConfigError: with every problem, each told once, and the file that it is in.
    """
    problems: dict[Problem, None] = {}
    for run in runs:
        try:
            check_one(run.config)
        except ConfigError as error:
            choice = {"encoder": run.encoder, "decoder": run.decoder}
            for key, text in error.problems:
                side = key.partition(".")[0]
                place = f"{key} of {choice[side]}.yaml" if ".blocks" in key or key in choice else key
                problems[Problem(place, text)] = None
    if problems:
        raise ConfigError(*problems)


def check_folders(runs: Sequence[Run]) -> None:
    """Each run has a folder to itself, and a finished run in it is one of the same configuration.

    Raises:
        ConfigError: if not, naming the keys that differ or the file that lies there.
    """
    problems = []
    names = sorted({run.config.name for run in runs})
    if len(names) > 1:
        problems.append(Problem("name", f"must be one for the whole sweep, but is {', '.join(names)}"))
    owners: dict[str, Run] = {}
    for run in runs:
        owner = owners.setdefault(str(run.directory), run)
        if owner is not run:
            same = " and ".join(" ".join(one.overrides) for one in (owner, run))
            problems.append(Problem("sweep", f"two runs would share the folder {told(run.directory)}: {same}"))
            continue
        there = next((place for place in (run.directory, *run.directory.parents) if os.path.lexists(place)), None)
        if there is not None and not there.is_dir():
            problem = (
                f"{told(there)} is no folder, but {told(run.directory)} must be; choose another name, or remove it"
            )
            problems.append(Problem("name", problem))
            continue
        result = results.read_result(run.directory)
        if result is not None and result.finished and result.config_sha256 != run.config.sha256():
            before, now = results.read_config(run.directory) or {}, run.config
            differing = _differences(before, now.container(), set(now.identity()))
            problems.append(
                Problem(
                    "name",
                    f"{told(run.directory)} holds a finished run of another configuration ({differing}); "
                    "choose another name, or delete that folder",
                )
            )
    if problems:
        raise ConfigError(*problems)


def _differences(before: dict[str, Any], now: dict[str, Any], identity: set[str]) -> str:
    was, will_be = flatten(before), flatten(now)
    keys = [key for key in will_be if key in identity and was.get(key) != will_be[key]]
    keys += [key for key in was if key not in will_be]
    if "match" in before:  # it holds the widths that were found, not those that were asked for
        keys = [key for key in keys if not key.startswith(("encoder.", "decoder."))] or ["encoder or decoder"]
    told = [f"{key} was {was.get(key, 'not set')!r}, is {will_be.get(key, 'not set')!r}" for key in keys]
    return "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")


def check_import(package: str) -> None:
    """Import torch or torchvision, whose builds must belong together.

    Raises:
        ConfigError: if it does not load.
    """
    try:
        importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        problem = (
            f"torch {_version('torch')} and torchvision {_version('torchvision')} do not load together ({reason}); "
            "install a pair from one source: pip install --force-reinstall torch torchvision"
        )
        raise ConfigError(Problem("installation", problem)) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def stop(error: ConfigError) -> None:
    """Print what is wrong and end the process with 1."""
    count = len(error.problems)
    head = f"Nothing was run: {'a problem' if count == 1 else f'{count} problems'} with the configuration."
    lines = [head, *(f"  {problem}" for problem in error.problems)]
    Console(stderr=True).print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    raise SystemExit(1)
