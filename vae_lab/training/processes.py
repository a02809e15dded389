"""One run trained by several processes: started for that run alone, watched, and ended together."""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console

from vae_lab.config import SWEEP_POSITION, SWEEP_RUNS, Config, ConfigError, Position, Problem, Run, cores

MODULE = "vae_lab.training.worker"
LOOK_EVERY = 0.05
"""Seconds between two looks at the processes."""
GRACE = 3.0
"""Seconds after the end of one process in which the others may say what they saw of it."""
LONGEST_TOLD = 300


@dataclass(frozen=True)
class Job:
    """What a process must know to take its part in a run."""

    run: Run
    settings: Config
    goes_on: bool
    rank: int
    exchange: Path
    """A folder on this machine's own disk, where the processes find each other and leave their outcomes."""
    logging: Mapping[str, Any] | None
    """How Hydra has set up Python's logging."""

    @property
    def outcome(self) -> Path:
        """The file in which the process leaves its outcome."""
        return self.exchange / f"outcome-{self.rank}"

    @property
    def errors(self) -> Path:
        """The file to which a further process writes what it has to say; the first one has the terminal."""
        return self.exchange / f"errors-{self.rank}"


@dataclass
class Outcome:
    """How far a process has come; the first one writes it after every epoch."""

    measured: dict[str, Any] | None = None
    history: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    traceback: str = ""
    is_consequence: bool = False
    """Whether the error is only that another process was no longer there."""


class RankError(RuntimeError):
    """A run that ended with one of its processes: `error` is that one's, or how it ended, `told` its traceback."""

    def __init__(self, error: str, told: str) -> None:
        super().__init__(error)
        self.error = error
        self.told = told


def check(settings: Config) -> None:
    """Whether this machine can train the run in several processes.

    Raises:
        ConfigError: if there are fewer cores or GPUs than processes, or others have been started beside this one.
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
    """Who has started several processes of this command, as far as the environment tells."""
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
    """Train a run in `trainer.devices` processes; gives what the first one measured.

    The processes end with this one, however it ends, and with each other.

    Args:
        run: the run, whose folder this process holds.
        settings: its configuration, with the widths that were found for it.
        goes_on: whether it goes on from its last checkpoint.
        on_history: told the state of the first process's clock and record, however the run ends.

    Raises:
        RankError: if one fails or dies.
    """
    with tempfile.TemporaryDirectory(prefix="vae_lab-", ignore_cleanup_errors=True) as exchange:
        jobs = [
            Job(run, settings, goes_on, rank, Path(exchange), _logging()) for rank in range(settings.trainer.processes)
        ]
        try:
            with _started(jobs) as processes:
                _wait(processes, jobs)
        finally:
            first = _outcome(jobs[0])
            if first is not None:
                on_history(first.history)
        if first is None or first.measured is None:
            raise RankError("process 1 left no figures", "")
        return first.measured


@contextmanager
def _started(jobs: Sequence[Job]) -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.extend(map(_start, jobs))  # where one cannot be started, those before it are in the list
        yield processes
    finally:
        was_killed = [_kill(process) for process in processes]
        if any(was_killed):
            Console(stderr=True).show_cursor()  # which the progress bar of a process that was killed has hidden


def _start(job: Job) -> subprocess.Popen[bytes]:
    with open(os.devnull if job.rank == 0 else job.errors, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,  # the process ends when this end of it is closed
            stdout=None if job.rank == 0 else subprocess.DEVNULL,
            stderr=None if job.rank == 0 else errors,
            env=_environment(job),
            start_new_session=True,  # a key such as Ctrl-C is for this process, which ends the others
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died already, as is seen at once
        pickle.dump(job, process.stdin)
        process.stdin.flush()
    return process


def _environment(job: Job) -> dict[str, str]:
    """That of this process, with its path for imports and its place in a sweep."""
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    position = Position.current()
    told = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(job.settings.trainer.threads)}
    if position is not None:
        told[SWEEP_POSITION] = f"{position.number}/{position.runs}"
    return {key: value for key, value in os.environ.items() if key != SWEEP_RUNS} | told


def _logging() -> dict[str, Any] | None:
    if not HydraConfig.initialized():
        return None
    found = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else None


def _kill(process: subprocess.Popen[bytes]) -> bool:
    """End a process and those that it has started; False if it had ended by itself."""
    running = process.poll() is None
    with suppress(ProcessLookupError, PermissionError):  # the workers of a dead process may be left
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
    """Wait for all, or until one fails.

    Raises:
        RankError: then.
    """
    while True:
        codes = [process.poll() for process in processes]
        if any(codes):
            break
        if all(code == 0 for code in codes):
            return
        time.sleep(LOOK_EVERY)
    latest = time.monotonic() + GRACE
    while any(process.poll() is None for process in processes) and time.monotonic() < latest:
        time.sleep(LOOK_EVERY)
    raise _blamed(jobs, [process.poll() for process in processes])


def _blamed(jobs: Sequence[Job], codes: Sequence[int | None]) -> RankError:
    """The error that the others follow from: one that a process told, else that one died without a word."""
    outcomes = [(_outcome(job) or Outcome()) for job in jobs]
    told = [one for one in outcomes if one.error and not one.is_consequence]
    if told:
        return RankError(told[0].error or "", told[0].traceback)
    for job, code, outcome in zip(jobs, codes, outcomes, strict=True):
        if code and not outcome.error:
            who = f"process {job.rank + 1} of {len(jobs)}"
            return RankError(f"{who} {_how(code)}{_last_words(job)}; the others were ended", "")
    follows = next(one for one in outcomes if one.error)
    return RankError(follows.error or "", follows.traceback)


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        why = ", as by a system that is short of memory" if name == "SIGKILL" else ""
        return f"was killed ({name}{why})"
    return f"was killed (signal {-code})"


def _last_words(job: Job) -> str:
    try:
        lines = job.errors.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f", its last words {lines[-1][:LONGEST_TOLD]!r}" if lines else ""


def leave(job: Job, outcome: Outcome) -> None:
    """Write a process's outcome, whole or not at all."""
    part = job.outcome.with_suffix(".part")
    part.write_bytes(pickle.dumps(outcome))
    part.replace(job.outcome)


def _outcome(job: Job) -> Outcome | None:
    try:
        found: Outcome = pickle.loads(job.outcome.read_bytes())  # of a process of our own
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return found
