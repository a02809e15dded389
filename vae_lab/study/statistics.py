"""Intervals, differences and effects of a study. Reads no files, imports no torch.

The metric of record is the declared family: all its pairs and effects together are tested at 5 %, with simultaneous
95 % intervals. Every other metric is exploratory: its pairs and effects count where their false discovery rate, over
all exploratory ones of the study, is below 5 %. The interval of a cell is Student's, of its mean over its seeds.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from scipy import stats

from vae_lab.study.contrasts import LEVEL, Noise, Tested, estimate, false_discovery_rates, simultaneous
from vae_lab.study.gather import Study

MOST_CELLS = 12
"""With more cells than this, pairs are with the first cell only."""

FEWEST_TRIMMED = 4
"""The fewest seeds of which a quarter can be left out at each end."""

MOST_COMBINATIONS = 1000
"""With more combinations of levels than this, an incomplete grid is a search, and effects are not computed."""


@dataclass(frozen=True)
class Cell:
    """A cell's mean over its seeds."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    iqm: float | None = None
    """The interquartile mean, without the lowest and the highest quarter; from four seeds on, else None."""


@dataclass(frozen=True)
class Pair:
    """The difference a - b of two cells' means, with its simultaneous interval."""

    a: str
    b: str
    n: int
    """The seeds of the cell that has fewer."""
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    """Corrected over all pairs and effects of the metric."""
    different: bool
    q: float | None = None
    """The false discovery rate, of an exploratory metric."""


@dataclass(frozen=True)
class Effect:
    """The effect of a step from one level of a factor to another, averaged over the levels of all other factors.

    It has a simultaneous interval, like a pair. For two factors, `a:b` is their interaction: the effect of the step in
    a at the second level of b, minus its effect at the first level of b; its levels are written `a-b`.
    """

    factor: str
    from_: str
    to: str
    n: int
    effect: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    different: bool
    q: float | None = None


Tests = TypeVar("Tests", Pair, Effect)


@dataclass(frozen=True)
class Comparison:
    """The comparison of all cells by one metric."""

    cells: Mapping[str, Cell]
    pairs: Sequence[Pair]
    effects: Sequence[Effect]
    noise: Noise | None = None
    """What the tests assume about chance; None unless all cells can be compared and their seeds vary."""

    def pair(self, a: str, b: str) -> Pair | None:
        """The pair of two cells as a - b, even if it is stored as b - a."""
        for pair in self.pairs:
            if (pair.a, pair.b) == (a, b):
                return pair
            if (pair.a, pair.b) == (b, a):
                # 0 - x, because -x would turn 0 into -0.
                low, high = (None if end is None else 0 - end for end in (pair.high, pair.low))
                difference = None if pair.difference is None else 0 - pair.difference
                return replace(pair, a=a, b=b, difference=difference, low=low, high=high)
        return None

    def container(self) -> dict[str, Any]:
        """The comparison as a dictionary, as in `statistics.json`."""
        effects = [asdict(effect) for effect in self.effects]
        return {
            "cells": {name: asdict(cell) for name, cell in self.cells.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
            "effects": [{key.rstrip("_"): value for key, value in effect.items()} for effect in effects],
            "noise": None if self.noise is None else self._noise(),
        }

    def _noise(self) -> dict[str, Any]:
        assert self.noise is not None
        known = {name: value for name, value in asdict(self.noise).items() if name != "wide"}
        wide = self.noise.wide
        ratio = None if wide is None or not math.isfinite(wide.ratio) else wide.ratio
        return known | {
            "wide_cell": None if wide is None else [*self.cells][wide.cell],
            "wide_ratio": ratio,
            "wide_is_tested": None if wide is None else wide.outlier is None,
        }


def analyse(study: Study) -> dict[str, Comparison]:
    """Compare the cells of a study by every metric."""
    found = {
        metric: compare(study.values(metric), study.grounds(metric), study.factors, study.levels)
        for metric in study.metrics
    }
    return explored(found, study.record)


def explored(found: Mapping[str, Comparison], record: str) -> dict[str, Comparison]:
    """The comparisons, of which those other than that of the metric of record are exploratory."""
    others = {metric: comparison for metric, comparison in found.items() if metric != record}
    rates = iter(false_discovery_rates([one.p for comparison in others.values() for one in _tests(comparison)]))
    marked = dict(found)
    for metric, comparison in others.items():
        marked[metric] = replace(
            comparison,
            pairs=[_explored(pair, next(rates)) for pair in comparison.pairs],
            effects=[_explored(effect, next(rates)) for effect in comparison.effects],
        )
    return marked


def _tests(comparison: Comparison) -> list[Pair | Effect]:
    return [*comparison.pairs, *comparison.effects]


def _explored(one: Tests, rate: float | None) -> Tests:
    # Both, so that no interval around 0 is called a difference.
    different = one.different and rate is not None and rate < 1 - LEVEL
    return replace(one, q=rate, different=different)


def compare(
    values: pd.DataFrame,
    grounds: pd.DataFrame | None = None,
    factors: Mapping[str, Sequence[str]] | None = None,
    levels: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Compare the cells of one metric.

    Args:
        values: one row per seed, one column per cell, NaN for a missing figure.
        grounds: codes of the same shape: figures are compared only where their codes are equal.
        factors: factor → its levels; the others are compared with the first.
        levels: cell → its level of each factor. Effects require exactly one cell per combination, all comparable.
    """
    figures = values.to_numpy(dtype=float)
    codes = np.zeros_like(figures) if grounds is None else grounds.to_numpy(dtype=float)
    names = list(map(str, values.columns))
    known = np.flatnonzero(np.isfinite(figures).any(axis=0))
    couples = _couples(len(names))
    contrasts = list(_contrasts(factors or {}, len(names)))
    columns = _columns(names, factors or {}, levels or {})
    groups = _groups(known, codes)
    pairs: dict[tuple[int, int], Tested] = {}
    effects: list[Tested] = []
    noises = []
    asked_of = {tuple(group): [couple for couple in couples if {*couple} <= {*group}] for group in groups}
    tables = sum(map(bool, asked_of.values()))
    for group, own in asked_of.items():
        asked = contrasts if columns is not None and len(group) == len(names) else []
        weights = np.zeros((len(own) + len(asked), len(names)))
        for row, (a, b) in enumerate(own):
            weights[row, [a, b]] = 1, -1
        for row, contrast in enumerate(asked, start=len(own)):
            weights[row, columns] = contrast.weights
        table = figures[:, group]
        rows = np.isfinite(table).any(axis=1)
        if _varies(codes[:, group], table):  # what a seed shares is one condition only if all cells have the seed
            rows = np.isfinite(table).all(axis=1)
        if not len(weights) or not rows.any():
            continue
        tested, noise = simultaneous(table[rows], weights[:, group], tables)
        pairs |= dict(zip(own, tested, strict=False))
        effects = tested[len(own) :] or effects
        noises.append(_of_whole(noise, group, np.flatnonzero(rows)))
    none = Tested(0, None)
    return Comparison(
        cells={name: _cell(figures[:, column], codes[:, column]) for column, name in enumerate(names)},
        pairs=[Pair(names[a], names[b], *_shown(pairs.get((a, b), none))) for a, b in couples],
        effects=[
            Effect(one.factor, one.start, one.end, *_shown(tested))
            for one, tested in zip(contrasts, effects or [none] * len(contrasts), strict=True)
        ],
        noise=noises[0] if len(noises) == len(groups) == 1 else None,
    )


def _of_whole(noise: Noise | None, columns: Sequence[int], rows: np.ndarray) -> Noise | None:
    """The noise of a part of the table, with indices in the whole."""
    if noise is None or noise.wide is None:
        return noise
    wide = noise.wide
    outlier = None if wide.outlier is None else int(rows[wide.outlier])
    return replace(noise, wide=wide._replace(cell=columns[wide.cell], outlier=outlier))


def _shown(tested: Tested) -> tuple[Any, ...]:
    return (*tested, tested.p_adjusted is not None and tested.p_adjusted < 1 - LEVEL)


def _couples(cells: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(cells), 2)) if cells <= MOST_CELLS else [(0, b) for b in range(1, cells)]


def _groups(known: np.ndarray, codes: np.ndarray) -> list[list[int]]:
    """The columns of figures in groups that can be compared: they have equal codes in all seeds."""
    groups: dict[tuple[float | None, ...], list[int]] = {}
    for column in map(int, known):
        own = codes[:, column]
        kinds = set(own[np.isfinite(own)])
        key = tuple(kinds) if len(kinds) == 1 else tuple(None if math.isnan(code) else code for code in own)
        groups.setdefault(key, []).append(column)
    return list(groups.values())


def _varies(codes: np.ndarray, figures: np.ndarray) -> bool:
    return len(set(codes[np.isfinite(figures)])) > 1


def _cell(figures: np.ndarray, codes: np.ndarray) -> Cell:
    present = np.isfinite(figures)
    if len(set(codes[present])) > 1:
        return Cell(int(present.sum()), None, None, None, None)
    return Cell(*estimate(figures)[:5], interquartile_mean(figures[present]))


def interquartile_mean(samples: np.ndarray) -> float | None:
    """The mean without the lowest and the highest quarter, which a few outliers do not move (Agarwal et al. 2021).

    None of fewer than four samples, from which it would leave out none.
    """
    return None if len(samples) < FEWEST_TRIMMED else float(stats.trim_mean(samples, 0.25))


class Contrast(NamedTuple):
    """The levels that an effect compares: to - from, or (to,to - to,from) - (from,to - from,from)."""

    factor: str
    start: str
    end: str
    weights: np.ndarray
    """One per combination of levels, in the order of `itertools.product`."""


def _contrasts(factors: Mapping[str, Sequence[str]], cells: int) -> Iterator[Contrast]:
    shape = tuple(map(len, factors.values()))
    if not shape or math.prod(shape) > max(MOST_COMBINATIONS, cells):
        return
    axes = {factor: axis for axis, factor in enumerate(factors)}

    def weights(steps: Mapping[int, int]) -> np.ndarray:
        """Those of the step from the first level to another in each of these axes, the mean over all others."""
        parts = []
        for axis, size in enumerate(shape):
            part = np.zeros(size) if axis in steps else np.full(size, 1 / size)
            if axis in steps:
                part[[0, steps[axis]]] = -1, 1
            parts.append(part)
        return np.ravel(functools.reduce(np.multiply, np.ix_(*parts)))

    for factor, levels in factors.items():
        for to in range(1, len(levels)):
            yield Contrast(factor, levels[0], levels[to], weights({axes[factor]: to}))
    for one, other in itertools.combinations(factors, 2):
        for i, j in itertools.product(range(1, len(factors[one])), range(1, len(factors[other]))):
            start, end = (f"{factors[one][a]}-{factors[other][b]}" for a, b in ((0, 0), (i, j)))
            yield Contrast(f"{one}:{other}", start, end, weights({axes[one]: i, axes[other]: j}))


def _columns(
    names: Sequence[str], factors: Mapping[str, Sequence[str]], levels: Mapping[str, Sequence[str]]
) -> list[int] | None:
    """The column of each combination of levels; None if not every combination has exactly one cell."""
    index = {levels[name]: column for column, name in enumerate(names)} if levels else {}
    order = itertools.product(*factors.values()) if factors else ()
    columns = [index.get(tuple(combination)) for combination in order] if len(index) == len(names) else []
    return [column for column in columns if column is not None] if columns and None not in columns else None
