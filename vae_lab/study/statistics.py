"""Intervals, paired differences and effects of a study. Reads no files, imports no torch.

Runs are paired by seed: equal seeds see the same images in the same order, so the difference of a pair of cells is free
of the effect that the seed has on both. All intervals are Student's t intervals of a mean over seeds at 95 %; p-values
are those of the two-sided paired t test, corrected over all pairs of a metric by Holm's method (Holm 1979, "A simple
sequentially rejective multiple test procedure").
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from vae_lab.study.gather import Study

LEVEL = 0.95
MOST_CELLS = 12
"""With more cells than this, pairs are with the first cell only."""

MOST_COMBINATIONS = 1000
"""With more combinations of levels than this, an incomplete grid is a search, and effects are not computed."""

# A relative spread below this is rounding error.
ROUNDING = 1e-12


class Estimate(NamedTuple):
    """A mean over seeds, its 95 % interval, and the p-value of a zero mean. None if it cannot be computed."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Cell:
    """A cell's mean over its seeds."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Pair:
    """The mean difference a - b over the seeds that both have."""

    a: str
    b: str
    n: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    different: bool


@dataclass(frozen=True)
class Effect:
    """The effect of a step from one level of a factor to another, averaged over the levels of all other factors.

    For two factors, `a:b` is their interaction: the effect of the step in a at the second level of b, minus its effect
    at the first level of b; its levels are written `a-b`.
    """

    factor: str
    from_: str
    to: str
    n: int
    effect: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """The comparison of all cells by one metric."""

    cells: Mapping[str, Cell]
    pairs: Sequence[Pair]
    effects: Sequence[Effect]
    level: Mapping[str, float]
    """Cell → its mean over the seeds that all cells with the figure share, else over its own seeds; for ranking."""

    def pair(self, a: str, b: str) -> Pair | None:
        """The pair of two cells as a - b, even if it is stored as b - a."""
        for pair in self.pairs:
            if (pair.a, pair.b) == (a, b):
                return pair
            if (pair.a, pair.b) == (b, a):
                # 0 - x, because -x would turn 0 into -0.
                low, high = (None if end is None else 0 - end for end in (pair.high, pair.low))
                difference = None if pair.difference is None else 0 - pair.difference
                return Pair(a, b, pair.n, difference, low, high, pair.p, pair.p_adjusted, pair.different)
        return None

    def container(self) -> dict[str, Any]:
        """The comparison as a dictionary, as in `statistics.json`."""
        effects = [asdict(effect) for effect in self.effects]
        return {
            "cells": {name: asdict(cell) for name, cell in self.cells.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
            "effects": [{key.rstrip("_"): value for key, value in effect.items()} for effect in effects],
        }


def analyse(study: Study) -> dict[str, Comparison]:
    """Compare the cells of a study by every metric."""
    return {
        metric: compare(study.values(metric), study.grounds(metric), study.factors, study.levels)
        for metric in study.metrics
    }


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
        levels: cell → its level of each factor. Effects require exactly one cell per combination.
    """
    figures = values.to_numpy(dtype=float)
    codes = np.zeros_like(figures) if grounds is None else grounds.to_numpy(dtype=float)
    names = list(map(str, values.columns))
    return Comparison(
        cells={name: _cell(figures[:, column], codes[:, column]) for column, name in enumerate(names)},
        pairs=_pairs(names, figures, codes),
        effects=_effects(names, figures, codes, factors or {}, levels or {}),
        level=_level(names, figures),
    )


def _level(names: Sequence[str], figures: np.ndarray) -> dict[str, float]:
    present = np.isfinite(figures)
    used = np.flatnonzero(present.any(axis=0))
    shared = present[:, used].all(axis=1)
    rows = shared if shared.any() else np.ones(len(figures), dtype=bool)
    return {names[int(column)]: float(np.nanmean(figures[rows, column])) for column in used}


def estimate(samples: np.ndarray, scale: float | None = None) -> Estimate:
    """The mean of samples, one per seed; NaN does not count.

    Args:
        samples: (n,).
        scale: magnitude of the figures whose differences are the samples: a spread within their rounding error is zero.
    """
    present = samples[np.isfinite(samples)]
    n = len(present)
    if n == 0:
        return Estimate(0, None, None, None, None, None)
    mean = float(present.mean())
    rounding = ROUNDING * (float(np.abs(present).max()) if scale is None else scale)
    mean = 0.0 if scale is not None and abs(mean) <= rounding else mean
    if n == 1:
        return Estimate(1, mean, None, None, None, None)
    sd = float(present.std(ddof=1))
    if sd <= rounding:
        return Estimate(n, mean, 0.0, mean, mean, 1.0 if mean == 0 else None)
    error = sd / n**0.5
    reach = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean / error)))
    return Estimate(n, mean, sd, mean - reach, mean + reach, p)


def _cell(figures: np.ndarray, codes: np.ndarray) -> Cell:
    present = np.isfinite(figures)
    if len(set(codes[present])) > 1:
        return Cell(int(present.sum()), None, None, None, None)
    return Cell(*estimate(figures)[:5])


def _pairs(names: Sequence[str], figures: np.ndarray, codes: np.ndarray) -> list[Pair]:
    count = len(names)
    chosen = list(itertools.combinations(range(count), 2)) if count <= MOST_CELLS else [(0, b) for b in range(1, count)]
    estimates = []
    for a, b in chosen:
        together = np.where(codes[:, a] == codes[:, b], figures[:, a] - figures[:, b], np.nan)
        estimates.append(estimate(together, _magnitude(figures[:, [a, b]])))
    adjusted = holm([one.p for one in estimates])
    return [
        Pair(names[a], names[b], one.n, one.mean, one.low, one.high, one.p, p, p is not None and p < 1 - LEVEL)
        for (a, b), one, p in zip(chosen, estimates, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected by Holm's method; None is not part of the family."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        adjusted[index] = largest = max(largest, min(1.0, (len(order) - rank) * p))
    return adjusted


class Contrast(NamedTuple):
    """The levels that an effect compares: to - from, or (to,to - to,from) - (from,to - from,from)."""

    factor: str
    start: str
    end: str
    corners: tuple[Mapping[int, int], ...]
    """Two or four mappings from the axis of a factor to the index of its level."""


def _contrasts(factors: Mapping[str, Sequence[str]]) -> Iterator[Contrast]:
    axes = {factor: axis for axis, factor in enumerate(factors, start=1)}
    for factor, levels in factors.items():
        for to in range(1, len(levels)):
            yield Contrast(factor, levels[0], levels[to], tuple({axes[factor]: at} for at in (to, 0)))
    for one, other in itertools.combinations(factors, 2):
        for i, j in itertools.product(range(1, len(factors[one])), range(1, len(factors[other]))):
            start, end = (f"{factors[one][a]}-{factors[other][b]}" for a, b in ((0, 0), (i, j)))
            corners = ((i, j), (i, 0), (0, j), (0, 0))
            yield Contrast(f"{one}:{other}", start, end, tuple({axes[one]: a, axes[other]: b} for a, b in corners))


def _effects(
    names: Sequence[str],
    figures: np.ndarray,
    codes: np.ndarray,
    factors: Mapping[str, Sequence[str]],
    levels: Mapping[str, Sequence[str]],
) -> list[Effect]:
    shape = tuple(len(values) for values in factors.values())
    combinations = math.prod(shape)
    if not factors or combinations > max(MOST_COMBINATIONS, len(names)):
        return []
    index_to_column = {
        tuple(values.index(level) for values, level in zip(factors.values(), levels[name], strict=True)): column
        for column, name in enumerate(names)
    }
    if not len(names) == len(index_to_column) == combinations:
        return [Effect(one.factor, one.start, one.end, 0, None, None, None, None) for one in _contrasts(factors)]
    order = [index_to_column[index] for index in itertools.product(*map(range, shape))]
    grid, ground = (whole[:, order].reshape(-1, *shape) for whole in (figures, codes))
    return [_effect(contrast, grid, ground) for contrast in _contrasts(factors)]


def _effect(contrast: Contrast, grid: np.ndarray, ground: np.ndarray) -> Effect:
    parts = [_slice(grid, corner) for corner in contrast.corners]
    grounds = [_slice(ground, corner) for corner in contrast.corners]
    # Differences of differences, not a weighted sum, so that equal cells differ by exactly zero.
    by_combination = parts[0] - parts[1]
    if len(parts) == 4:
        by_combination = by_combination - (parts[2] - parts[3])
    alike = np.logical_and.reduce([grounds[0] == other for other in grounds[1:]])
    by_seed = np.where(alike, by_combination, np.nan).reshape(len(grid), -1).mean(axis=1)
    one = estimate(by_seed, _magnitude(grid))
    return Effect(contrast.factor, contrast.start, contrast.end, one.n, one.mean, one.low, one.high, one.p)


def _slice(whole: np.ndarray, levels: Mapping[int, int]) -> np.ndarray:
    index: list[Any] = [levels.get(axis, slice(None)) for axis in range(whole.ndim)]
    return whole[tuple(index)]


def _magnitude(figures: np.ndarray) -> float:
    present = np.abs(figures[np.isfinite(figures)])
    return float(present.max()) if len(present) else 0.0
