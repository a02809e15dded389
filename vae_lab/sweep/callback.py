"""The Hydra callback: it checks all runs before the first one starts, and summarises them after the last."""

import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from vae_lab import compat, results, search
from vae_lab.config import ConfigError, Inherited, Problem, Run
from vae_lab.config.terminal import say, shown, stop
from vae_lab.sweep import checks, launchers
from vae_lab.training import plan


class SweepCallback(Callback):
    """Checks the runs before they start, and prints a table and sets the exit code after them; also for a single run.

    Hydra swallows the exceptions of a callback, so problems are printed here and end the process with 1.
    """

    started: ClassVar[list["SweepCallback"]] = []

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.launcher = "basic"
        self.failure = ""
        """How the launcher failed, if it did."""

    def __getstate__(self) -> dict[str, Any]:
        """The state that a run takes to another process: not the other runs."""
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
            self._start(checks.expand(config), is_sweep=True)
            compat.trust_checked_runs()
        with _ending_on_error():
            self.launcher = str(config.hydra.runtime.choices.get("hydra/launcher"))
            sentence = launchers.fit(config.hydra, launchers.Taken.by(self.runs))
            if sentence:
                say(sentence)
        if planned is not None:
            self.runs = planned.runs  # the list grows

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the run."""
        self._end()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Summarise the sweep."""
        self._end()

    def _start(self, composed: Iterable[DictConfig], *, is_sweep: bool) -> None:
        with _ending_on_error():
            self.runs = checks.validated(composed)
            checks.check(self.runs)
            only_plan = any(run.config.plan for run in self.runs)
            if is_sweep or only_plan:
                show_plan(self.runs, all_runs=only_plan)
            if only_plan:
                raise SystemExit(0)
            self.started[:] = [self]
            Inherited.update(runs=len(self.runs) if len(self.runs) > 1 else None)

    def _plan_search(self, config: DictConfig) -> search.Planned:
        """Check the runs at the corners of the search space, and the existing runs of the search."""
        with _ending_on_error():
            planned = search.plan(config)
            self.runs = checks.validated(planned.corners())
            planned.check(self.runs)
            checks.check(self.runs)
            checks.check_folders(planned.runs)
            for line in planned.lines():
                say(line)
            if any(run.config.plan for run in self.runs):
                raise SystemExit(0)
            self.started[:] = [self]
            Inherited.update(runs=max(planned.options.n_trials, len(planned.record.trials)))
        return planned

    def _end(self) -> None:
        self.started.clear()
        with _ending_on_error():
            Inherited.update(runs=None)
            found = [(run, results.read_result(run.directory)) for run in self.runs]
            unfinished = [(run, result) for run, result in found if result is None or not result.finished]
            elsewhere = [run for run, _ in unfinished if results.holder(run.directory)]
            failed = [
                (shown(run.directory), (result.error or "no reason recorded") if result else self._why_unfinished(run))
                for run, result in unfinished
                if run not in elsewhere
            ]
            failed += [
                (shown(run.directory), "its test metrics were not completed")
                for run, result in found
                if result is not None and result.finished and not plan.measured(run, result)
            ]
            from vae_lab.report.terminal import failures, show_report  # pandas, scipy and matplotlib take seconds

            written = False
            try:
                written = show_report(sorted({run.directory.parents[1] for run in self.runs}))
            finally:
                if elsewhere:
                    count = f"{len(elsewhere)} run{'s are' if len(elsewhere) > 1 else ' is'}"
                    Console().print(f"{count} in the hands of other processes, which report on them when they end.")
                if failed:
                    Console().print(failures(failed))
            if failed or not written:
                raise SystemExit(1)

    def _why_unfinished(self, run: Run) -> str:
        """Why a run has no result.json."""
        if not results.was_left(run.directory):
            return f"not started: {self.failure}" if self.failure else "left no result.json"
        return f"ended with its process: {self.failure or 'no reason is known'}"


def show_plan(runs: Sequence[Run], *, all_runs: bool) -> None:
    """Print the plan of the sweep."""
    folder = shown(runs[0].directory.parents[1])
    for line in plan.lines([plan.stage(run) for run in runs], folder, all_runs=all_runs):
        say(line)


def give_up(error: OSError) -> NoReturn:
    """Print which file cannot be read or written, summarise the runs so far, and end the process with 1."""
    path = f": {error.filename}" if error.filename else ""
    sentence = f"Stopped: {error.strerror or error}{path}. The same command with the same name goes on."
    say(sentence, error=True)
    _summarise()


def launched() -> bool:
    """Whether a sweep with a plugin's launcher is running, so that an error comes from the launcher."""
    return any(callback.launcher != "basic" for callback in SweepCallback.started)


def end_without(failure: str) -> NoReturn:
    """Print that the launcher failed, summarise the runs so far, and end the process with 1."""
    sweep = SweepCallback.started[0]
    sweep.failure = failure
    has_begun = any(run.directory.exists() for run in sweep.runs)
    kept = "The same command with the same name goes on." if has_begun else "Nothing was run."
    sentence = f"Stopped by the launcher {sweep.launcher}: {failure}. {kept}"
    say(sentence, error=True)
    if has_begun:
        _summarise()
    raise SystemExit(1)


def _summarise() -> NoReturn:
    for callback in [*SweepCallback.started]:
        if callback.runs:  # else a search ended before its first run
            callback._end()
    raise SystemExit(1)


@contextmanager
def _ending_on_error() -> Iterator[None]:
    """Print an error and end the process: Hydra would only warn, continue and exit with 0."""
    try:
        yield
    except ConfigError as error:
        stop(error)
    except OSError as error:
        SweepCallback.started.clear()
        give_up(error)
    except (ImportError, MemoryError) as error:
        say(f"Stopped: {checks.import_problem(error)}", error=True)
        raise SystemExit(1) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
