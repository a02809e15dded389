"""A study's figures beside published ones."""

from collections.abc import Iterator, Mapping
from math import hypot
from typing import NamedTuple

from pydantic import ValidationError

from vae_lab.config.published import Published, PublishedFigure
from vae_lab.study.contrasts import FEWEST_SEEDS
from vae_lab.study.gather import Study
from vae_lab.study.statistics import Cell, Comparison

REPRODUCED, BETTER, WORSE, OPEN, MISSING = "reproduced", "better", "worse", "not decided", "not measured"


class Beside(NamedTuple):
    """A published figure and that of our cell."""

    cell: str
    source: str
    published: PublishedFigure
    ours: Cell | None
    verdict: str
    """One of the above; the published figure's note if it is not to be compared."""


def beside(study: Study, statistics: Mapping[str, Comparison]) -> list[Beside]:
    """Every published figure of every cell, in the order in which they are published."""
    known = {cell: _published(study, cell) for cell in study.cells}
    found = [
        Beside(cell, one.source, row, ours, _verdict(row, study.figure(row.metric).better, ours))
        for cell, one in known.items()
        if one is not None
        for row in one.figures
        for ours in [statistics[row.metric].cells.get(cell) if row.metric in statistics else None]
    ]
    order = list(dict.fromkeys(row.published.metric for row in found))
    return sorted(found, key=lambda row: order.index(row.published.metric))


def _published(study: Study, cell: str) -> Published | None:
    """The published figures of a cell, as its configuration has them."""
    for record in study.compared:
        if record.cell == cell and record.published is not None:
            try:
                return Published.model_validate(record.published)
            except ValidationError:  # of a damaged file
                return None
    return None


def _verdict(published: PublishedFigure, better: str | None, ours: Cell | None) -> str:
    """What follows from the interval of the difference, whose half-width is that of ours and the ± of the published.

    Reproduced: all of it is within the tolerance. Better or worse: all of it is on one side of zero. Else, and with
    fewer than three seeds, nothing is decided.
    """
    if ours is None or ours.mean is None:
        return MISSING
    if published.note:
        return published.note
    if ours.low is None or ours.high is None or ours.n < FEWEST_SEEDS:
        return OPEN
    reach = hypot((ours.high - ours.low) / 2, published.spread or 0.0)
    low, high = ours.mean - published.value - reach, ours.mean - published.value + reach
    if published.tolerance is not None and max(abs(low), abs(high)) <= published.tolerance:
        return REPRODUCED
    if low <= 0 <= high or better is None:
        return OPEN
    return BETTER if (low > 0) == (better == "higher") else WORSE


def counted(rows: list[Beside]) -> Iterator[tuple[str, Mapping[str, list[str]]]]:
    """Metric → verdict → cells, of the figures about which something is decided."""
    for metric in dict.fromkeys(row.published.metric for row in rows):
        verdicts: dict[str, list[str]] = {}
        for row in rows:
            compared = not row.published.note and row.verdict != MISSING
            if row.published.metric == metric and compared:
                verdicts.setdefault(row.verdict, []).append(row.cell)
        if {*verdicts} - {OPEN}:
            yield metric, verdicts
