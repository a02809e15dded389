"""Report the searches among the runs: a table, figures and a sentence each."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vae_lab.report.tables import MISSING, Entry, Table
from vae_lab.results import figures
from vae_lab.results.trials import Trials, TrialsError, Value, bare, read_trials
from vae_lab.study.budgets import budget, is_comparable
from vae_lab.study.gather import Study
from vae_lab.study.plots import Drawing
from vae_lab.study.searches import WEIGHTED, weighs_what_it_searches

MOST_TRIALS = 10
"""Largest number of trials in the table."""


class Search(NamedTuple):
    """A search and its name."""

    name: str
    record: Trials
    test_total: float | None
    """The test total of the best trial."""


def searches(study: Study) -> tuple[list[Search], list[str]]:
    """The searches whose whole folder is reported, and a note on each record that cannot be read."""
    found, notes = [], []
    for folder in study.folders:
        try:
            record = read_trials(folder)
        except (TrialsError, OSError) as error:
            notes.append(f"The search is left out: {error}.")
            continue
        if record is None or not record.trials:
            continue
        best = record.finished[0].run if record.finished else None
        totals = (one.result.test.total for one in study.records if one.folder == folder.absolute() / str(best))
        found.append(Search(folder.absolute().name, record, next(totals, None)))
    return found, notes


def sentences(found: Search) -> Iterator[str]:
    """A sentence about the result of a search."""
    record = found.record
    count = len(record.finished)
    if not count:
        yield f"The search {found.name} has found nothing: none of its {len(record.trials)} trials has finished."
        return
    best = record.finished[0]
    trials = f"{count} finished trial{'s' if count > 1 else ''}"
    values = ", ".join(f"{bare(key)} {value}" for key, value in best.values.items())
    tested = "" if found.test_total is None else f"; its test total is {found.test_total:.4f}"
    yield (
        f"Of {trials} of the search {found.name}, number {best.number} has the {record.goal} {record.metric}, "
        f"{figure(record, record.shown(best))}: {values}{tested}."
    )


def figure(record: Trials, value: float) -> str:
    """A value of the search's metric as text, with its usual digits."""
    digits = 2 if record.metric == "val.elbo" else figures.find(record.metric).digits + 1
    return f"{value:,.{digits}f}".replace("-", "−")


def tables(found: Sequence[Search]) -> list[Table]:
    """The table of each search in which a trial has finished."""
    own = [_table(one) for one in found if one.record.finished]
    return [*own, *_budgets(found)]


def _comparable(found: Sequence[Search]) -> list[Search]:
    """The searches that can be compared at equal budgets: several, of one metric, at random."""
    able = [one for one in found if is_comparable(one.record) and not weighs_what_it_searches(one.record)]
    return able if len(able) > 1 and len({_conditions(one.record) for one in able}) == 1 else []


def _conditions(record: Trials) -> tuple[str, ...]:
    """The metric of a search, and what is fixed and decides what it means."""
    meaning = ("data", "trainer", "likelihood", "experiment", *(() if record.metric == "val.elbo" else ("objective",)))
    return record.metric, *(word for word in record.fixed if word.lstrip("+").startswith(meaning))


def _budgets(found: Sequence[Search]) -> Iterator[Table]:
    able = _comparable(found)
    if not able:
        return
    curves = {one.name: budget(one.record) for one in able}
    trials = min(len(curve.best) for curve in curves.values())
    shown = sorted({1, max(1, trials // 4), max(1, trials // 2), trials})
    rows = []
    for one in able:
        curve = curves[one.name]
        entries = []
        for n in shown:
            best, *ends = (figure(one.record, values[n - 1]) for values in curve)
            interval = f" ({' to '.join(ends)})" if 2 * n <= trials else ""
            entries.append(Entry(f"{best}{interval}", float(curve.best[n - 1])))
        ended = f"{len(one.record.finished)} of {len(curve.best)}"
        rows.append((Entry(one.name), Entry(ended, len(curve.best)), *entries))
    record = able[0].record
    columns = ("search", "finished", *(f"best of {n}" for n in shown))
    note = (
        f"The {record.goal} {record.metric} that so many random trials are expected to find (Dodge et al. 2019), with "
        "the bootstrap's interval over the trials, which is too narrow: a nominal 95 % covers about 80 %. A failed "
        "trial counts as the worst that finished. Which search is better may depend on how much is spent on it."
    )
    if len({tuple(one.record.space) for one in able}) > 1:
        note += " The searches vary different keys."
    yield Table("Equal budgets", columns, tuple(rows), note)


def _table(found: Search) -> Table:
    """The best trials. Only the first has a test total, because test images must not select a trial."""
    record = found.record
    rows = []
    for rank, trial in enumerate(record.finished[:MOST_TRIALS]):
        values = (_entry(trial.values[key]) for key in record.space)
        total = found.test_total if rank == 0 else None
        tested = Entry(MISSING if total is None else f"{total:.4f}", total)
        shown = record.shown(trial)
        rows.append((Entry(str(trial.number), trial.number), *values, Entry(figure(record, shown), shown), tested))
    columns = ("trial", *map(bare, record.space), record.metric, "test total")
    counts = Counter[str](trial.state for trial in record.trials)
    named = {"finished": "finished", "failed": "failed", "open": "did not end"}
    states = ", ".join(f"{counts[state]} {word}" for state, word in named.items() if counts[state])
    note = (
        f"The {len(rows)} best of {len(record.trials)} trials ({states}), chosen by {record.sampler} for the "
        f"{record.goal} {record.metric}. The test total is the best trial's alone: test images choose nothing. Each "
        "trial has one seed; what the best owes to chance, other seeds tell."
    )
    if weighs_what_it_searches(record):
        note += f" {WEIGHTED}"
    return Table(f"Search {found.name}", columns, tuple(rows), note)


def _entry(value: Value) -> Entry:
    try:
        return Entry(str(value), float(value))
    except ValueError:
        return Entry(value if isinstance(value, str) else str(value))


def drawings(found: Sequence[Search]) -> Iterator[Callable[[], Drawing | None]]:
    """The figures of each search, and of those that can be compared."""
    from vae_lab.study import search_plots

    for one in found:
        yield from search_plots.drawings(one.record, one.name, functools.partial(_importances, one.record))
    able = _comparable(found)
    if able:
        curves = {one.name: budget(one.record) for one in able}
        yield functools.partial(search_plots.budgets, curves, able[0].record)


def _importances(record: Trials) -> Mapping[str, float]:
    from vae_lab.study.searches import importances

    return importances(record)
