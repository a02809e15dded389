"""The search loop: choose trials, run them, record them. Each step is saved before the next."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vae_lab.results.trials import Trial, Trials, Value, write_trials
from vae_lab.search.propose import propose


def search(
    record: Trials,
    folder: Path,
    trials: int,
    at_once: int,
    run_of: Callable[[Mapping[str, Value]], str],
    launch: Callable[[Sequence[Trial]], Sequence[Trial]],
) -> None:
    """Continue a search until it has this many trials.

    Trials that a kill left open come first, with the same values. A trial is recorded before it is run, and its loss
    before the next one is chosen.

    Args:
        record: the search so far.
        folder: the folder of the record.
        trials: the total number of trials.
        at_once: how many trials are chosen and launched together.
        run_of: returns the name of the run with these values.
        launch: runs trials and returns them with their results; a trial that is still open stays open.
    """
    left_open: set[int] = set()
    while batch := [one for one in record.trials if one.state == "open" and one.number not in left_open][:at_once]:
        record = _recorded(record, folder, launch(batch), left_open)
    while (known := len(record.trials)) < trials:
        asked: list[Trial] = []
        for number in range(known, min(known + at_once, trials)):
            values = propose(record, asked)
            asked.append(Trial(number=number, values=values, run=run_of(values)))
        record = record.plus(asked)
        write_trials(folder, record)
        record = _recorded(record, folder, launch(asked), left_open)


def _recorded(record: Trials, folder: Path, trials: Sequence[Trial], left_open: set[int]) -> Trials:
    left_open |= {one.number for one in trials if one.state == "open"}
    record = record.plus(trials)
    write_trials(folder, record)
    return record
