"""Train one run in several processes: start them for that run, watch them, and end them together."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console

from vae_lab.config import Config, ConfigError, Inherited, Position, Problem, Run, cores

MODULE = "vae_lab.training.worker"
POLL_EVERY = 0.05
"""Seconds between two polls of the processes."""
GRACE = 3.0
"""Seconds that the others have to report their own errors after one process has ended."""
LONGEST_QUOTE = 300
"""Characters of a process's last line that an error quotes."""


@dataclass(frozen=True)
class Job:
    """What a process needs to know to train its part of a run."""

    run: Run
    settings: Config
    goes_on: bool
    rank: int
    exchange: Path
    """A folder on a local disk, where the processes find each other and write their outcomes."""
    logging: Mapping[str, Any] | None
    """Hydra's configuration of Python's logging."""
    inherited: Inherited

    @property
    def outcome(self) -> Path:
        """The file to which the process writes its outcome."""
        return self.exchange / f"outcome-{self.rank}"

    @property
    def errors(self) -> Path:
        """The file for a process's stderr; the first process writes to the terminal instead."""
        return self.exchange / f"errors-{self.rank}"


@dataclass
class Outcome:
    """The progress and result of a process; the first process writes it after every epoch."""

    measured: dict[str, Any] | None = None
    history: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    traceback: str = ""
    is_consequence: bool = False
    """Whether the error only says that another process has ended."""


class RankError(RuntimeError):
    """A process of the run failed: `error` is its error or how it ended, `traceback` its traceback."""

    def __init__(self, error: str, traceback: str) -> None:
        super().__init__(error)
        self.error = error
        self.traceback = traceback


def check(settings: Config) -> None:
    """Check that this machine can train the run in several processes.

    Raises:
        ConfigError: if there are fewer cores or GPUs than processes, or a launcher has started several commands.
    """
    processes, kind = settings.trainer.processes, settings.trainer.accelerator
    if processes == 1:
        return
    starter = _other_starter()
    if starter is not None:
        problem = (
            f"vae_lab starts the {processes} processes of a run itself, on one machine, but {starter}; "
            "run the command without it, once"
        )
        raise ConfigError(Problem("trainer.devices", problem))
    if kind == "cpu" and processes > cores():
        problem = f"must be at most the {cores()} cores that this process may use, but is {processes}"
        raise ConfigError(Problem("trainer.devices", problem))


def _other_starter() -> str | None:
    """The launcher that has started several processes of this command, according to the environment."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun has started this process"
    for name, who in (
        ("SLURM_STEP_NUM_TASKS", "srun"),
        ("OMPI_COMM_WORLD_SIZE", "mpirun"),
        ("WORLD_SIZE", "a launcher"),
    ):
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            return f"{who} has started {count} of them ({name})"
    return None


def train(
    run: Run, settings: Config, *, goes_on: bool, on_history: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Train a run in `trainer.devices` processes; returns the measurements of the first one.

    If one process ends, the others end too. They also end with this process, however it ends.

    Args:
        run: the run, whose folder this process has locked.
        settings: its configuration, with the matched widths.
        goes_on: whether to resume from its last checkpoint.
        on_history: called with the state of the first process's `History`, however the run ends.

    Raises:
        RankError: if one fails or dies.
    """
    with tempfile.TemporaryDirectory(prefix="vae_lab-", ignore_cleanup_errors=True) as exchange:
        jobs = [
            Job(run, settings, goes_on, rank, Path(exchange), _logging(), _inherited())
            for rank in range(settings.trainer.processes)
        ]
        try:
            with _started(jobs) as processes:
                _wait(processes, jobs)
        finally:
            first = _read_outcome(jobs[0])
            if first is not None:
                on_history(first.history)
        if first is None or first.measured is None:
            raise RankError("process 1 left no figures", "")
        return first.measured


@contextmanager
def _started(jobs: Sequence[Job]) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.extend(map(_start, jobs))  # if one fails to start, those before it are in the list
        yield processes
    finally:
        was_killed = [_kill(process) for process in processes]
        if any(was_killed):
            Console(stderr=True).show_cursor()  # a killed progress bar leaves it hidden


def _start(job: Job) -> subprocess.Popen[bytes]:
    with open(os.devnull if job.rank == 0 else job.errors, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,  # the process ends when this end is closed
            stdout=None if job.rank == 0 else subprocess.DEVNULL,
            stderr=None if job.rank == 0 else errors,
            env=_environment(job),
            start_new_session=True,  # Ctrl-C goes to this process only, which ends the others
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died already, which `_wait` notices
        pickle.dump(job, process.stdin)
        process.stdin.flush()
    return process


def _environment(job: Job) -> dict[str, str]:
    """The environment of this process, with its import path."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(job.settings.trainer.threads)}


def _inherited() -> Inherited:
    position = Position.current()
    return replace(Inherited.here, number=position.number if position else None)


def _logging() -> dict[str, Any] | None:
    if not HydraConfig.initialized():
        return None
    found = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else None


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process and its children; False if it had already ended by itself."""
    running = process.poll() is None
    with suppress(ProcessLookupError, PermissionError):  # the children of a dead process may be left
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        elif running:
            process.kill()
    process.wait()
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    return running


def _wait(processes: Sequence[subprocess.Popen[bytes]], jobs: Sequence[Job]) -> None:
    """Wait until all have ended.

    Raises:
        RankError: if one fails.
    """
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            break
        if all(code == 0 for code in codes):
            return
        time.sleep(POLL_EVERY)
    latest = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < latest:
        time.sleep(POLL_EVERY)
    raise _root_error(jobs, [process.poll() for process in processes])


def _root_error(jobs: Sequence[Job], codes: Sequence[int | None]) -> RankError:
    """The error that caused the others: one that a process reported, else the silent death of a process."""
    outcomes = [(_read_outcome(job) or Outcome()) for job in jobs]
    reported = [one for one in outcomes if one.error and not one.is_consequence]
    if reported:
        return RankError(reported[0].error or "", reported[0].traceback)
    for job, code, outcome in zip(jobs, codes, outcomes, strict=True):
        if code and not outcome.error:
            who = f"process {job.rank + 1} of {len(jobs)}"
            return RankError(f"{who} {exit_text(code)}{_last_line(job)}; the others were ended", "")
    consequence = next(one for one in outcomes if one.error)
    return RankError(consequence.error or "", consequence.traceback)


KILLERS = {
    "SIGKILL": "as by a system that is short of memory, or by the scheduler of a cluster",
    "SIGBUS": "as where /dev/shm or a disk is full",
    "SIGSEGV": "by an error in compiled code",
    "SIGABRT": "by an error in compiled code",
    "SIGXCPU": "at the limit of its processor time",
    "SIGXFSZ": "at the limit of a file's size",
}
"""Signals that nobody sends to a run on purpose, and what does."""


def exit_text(code: int) -> str:
    """How a process ended, after its name: by its exit code, or minus the number of a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (f" ({KILLERS[name]})" if name in KILLERS else "")


def _last_line(job: Job) -> str:
    try:
        lines = job.errors.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f", its last words {lines[-1][:LONGEST_QUOTE]!r}" if lines else ""


def leave(job: Job, outcome: Outcome) -> None:
    """Write a process's outcome atomically."""
    part = job.outcome.with_suffix(".part")
    part.write_bytes(pickle.dumps(outcome))
    part.replace(job.outcome)


def _read_outcome(job: Job) -> Outcome | None:
    try:
        found: Outcome = pickle.loads(job.outcome.read_bytes())  # written by our own process
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return found
