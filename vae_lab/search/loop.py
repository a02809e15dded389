"""Ask, run, tell, and write down each of them before the next."""

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
    """Go on with a search until it has so many trials.

    Trials that are open, since a kill left them so, come first and with the values that they had. A trial is written
    down before it is run, and its loss before the next is chosen.

    Args:
        record: the search so far.
        folder: where the record is kept.
        trials: how many there are to be.
        at_once: how many are chosen, and handed over to be run, together.
        run_of: values to the name of their run.
        launch: runs trials and gives them back with what came of them; one that is still open is left so.
    """
    left: set[int] = set()
    while batch := [one for one in record.trials if one.state == "open" and one.number not in left][:at_once]:
        record = _told(record, folder, launch(batch), left)
    while (known := len(record.trials)) < trials:
        asked: list[Trial] = []
        for number in range(known, min(known + at_once, trials)):
            values = propose(record, asked)
            asked.append(Trial(number=number, values=values, run=run_of(values)))
        record = record.plus(asked)
        write_trials(folder, record)
        record = _told(record, folder, launch(asked), left)


def _told(record: Trials, folder: Path, trials: Sequence[Trial], left: set[int]) -> Trials:
    left |= {one.number for one in trials if one.state == "open"}
    record = record.plus(trials)
    write_trials(folder, record)
    return record
