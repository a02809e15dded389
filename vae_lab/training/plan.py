"""The plan of a command: which runs have finished, which resume, and how long it may take."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Literal, NamedTuple

from vae_lab import results
from vae_lab.config import Run

MOST_LINES = 10
"""Largest number of runs that a sweep lists one by one; `plan=true` lists all."""

STAGES = {
    "finished": "finished",
    "to measure": "finished but for test metrics",
    "elsewhere": "in the hands of other processes",
    "goes on": "to go on with",
    "again": "to do again",
    "new": "to do",
}


class Stage(NamedTuple):
    """The state of a run: its name, the epoch after which it resumes, and a note."""

    run: Run
    name: Literal["finished", "to measure", "elsewhere", "goes on", "again", "new"]
    epochs: int = 0
    note: str = ""

    def __str__(self) -> str:
        return f"{self.run}: {STAGES[self.name] if self.name in ('finished', 'new') else self.note}"


def finished(run: Run) -> results.Result | None:
    """The result of this run if it finished with this configuration, and wrote files that are undamaged."""
    result = results.read_result(run.directory)
    if result is None or not result.finished or result.config_sha256 != run.config.sha256():
        return None
    if not result.has_its_files and has_checkpoint(run):
        return None  # it resumes, to write them
    return None if results.damaged(run.directory, result) else result


def measured(run: Run, result: results.Result) -> bool:
    """Whether a finished run has all the test metrics that its configuration asks for now."""
    known = result.measured()
    return known is not None and known.covers(run.config.metrics)


def all_finished(runs: Sequence[Run]) -> list[results.Result | None]:
    """`finished` of each run; reading the files takes most of the time, so they are read in parallel."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(finished, runs))


def damage(run: Run) -> str:
    """A phrase that names the damaged files of an earlier attempt; empty if there are none."""
    result = results.read_result(run.directory)
    if result is not None:
        files = results.damaged(run.directory, result)
    else:
        files = [file for file in [run.directory / results.RESULT] if file.exists()]
    return f"{', '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} damaged" if files else ""


def has_checkpoint(run: Run) -> bool:
    """Whether an earlier attempt at this run left a checkpoint."""
    return any((run.directory / results.CHECKPOINTS).glob("*.ckpt"))


def stage(run: Run) -> Stage:
    """The state of a run; imports torch if the run has a checkpoint."""
    result = finished(run)
    if result is not None:
        return Stage(run, "finished") if measured(run, result) else Stage(run, "to measure", note="to measure again")
    owner = results.holder(run.directory)
    if owner is not None:
        return Stage(run, "elsewhere", note=f"in the hands of {owner}")
    damaged_files = damage(run)
    why = f", since {damaged_files}" if damaged_files else ""
    if has_checkpoint(run):
        from vae_lab.training import checkpoints, runner

        try:
            epochs = runner.epochs_kept(run)
        except checkpoints.CheckpointError as error:
            return Stage(run, "again", note=f"to do again, since {error}")
        if epochs:
            return Stage(run, "goes on", epochs, f"goes on after epoch {epochs} of {_epochs(run)}{why}")
    earlier = results.read_result(run.directory)
    if damaged_files:
        return Stage(run, "again", note=f"to do again{why}")
    if earlier is not None and not earlier.finished:
        return Stage(run, "again", note=f"to do again, since it failed: {earlier.error}")
    return Stage(run, "new")


def lines(stages: Sequence[Stage], folder: str, *, all_runs: bool = False) -> Iterator[str]:
    """The plan as text: a sentence about all runs, one about the time, and one line per run of interest."""
    counts = Counter[str](one.name for one in stages)
    summary = ", ".join(f"{counts[name]} {words}" for name, words in STAGES.items() if counts[name])
    runs = f"{len(stages)} run{'s' if len(stages) > 1 else ''}"
    yield f"Plan: {runs} under {folder}: {summary}. {_time(stages)}".rstrip()
    single = [one for one in stages if all_runs or one.note]
    most = len(single) if all_runs else MOST_LINES
    yield from (f"  {one}" for one in single[:most])
    if len(single) > most:
        yield f"  and {len(single) - most} more: plan=true tells all"


def _time(stages: Sequence[Stage]) -> str:
    todo = [one for one in stages if one.name in ("goes on", "again", "new")]
    if not todo:
        return ""
    by_cell: dict[str, list[float]] = {}
    for one in stages:
        if one.name == "finished" and (seconds := wall(one.run.directory)):
            by_cell.setdefault(one.run.cell, []).append(seconds)
    known = [wall for walls in by_cell.values() for wall in walls]
    if not known:
        return "How long it takes is not known before a run has finished."
    seconds = sum(mean(by_cell.get(one.run.cell, known)) * (1 - one.epochs / _epochs(one.run)) for one in todo)
    count = f"{len(known)} finished run{'s' if len(known) > 1 else ''}"
    return f"About {timedelta(seconds=max(1, round(seconds)))}, judged by {count}."


def wall(folder: Path) -> float | None:
    """The wall time of a finished run in seconds; None if it was interrupted."""
    result = results.read_result(folder)
    return None if result is None or result.resumed else result.wall_seconds


def _epochs(run: Run) -> int:
    return run.config.trainer.max_epochs
