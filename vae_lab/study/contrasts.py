"""Simultaneous tests of contrasts between the cells of one figure. Reads no files, imports no torch.

The family is every contrast that is asked for together. Its tests are single-step: with the noise of all cells pooled,
the largest studentised contrast of a table without differences is below the critical value in 95 % of all tables, so
that all intervals hold at once (Tukey's studentised range is the case of all pairs; Hothorn, Bretz and Westfall 2008,
"Simultaneous inference in general parametric models"). Seeds are blocks if every cell has every seed: what a seed does
to all cells alike is no noise.

One rule, fixed in advance, decides whether that is enough. If a cell varies more than the others together, by
Cochran's test at 5 %, or at 10 % with fewer than five seeds, where it shows less, a contrast counts only if it is also
found from its own spread alone, by t tests with Bonferroni's correction. If, beside that, a seed of this cell lies far
from its others, by Grubbs' test at 20 %, its noise is skewed, no test of means holds its level with so few seeds, and
nothing about the cell is tested. If the cell is unmistakable, as one that diverges is (Cochran's p below 0.001),
contrasts between the others are tested without it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special, stats

LEVEL = 0.95
FEWEST_SEEDS = 3
"""With fewer seeds nothing is tested."""
UNEQUAL_SPREAD, UNEQUAL_SPREAD_IN_FEW, FEW_SEEDS = 0.05, 0.1, 5
"""The p-value below which the spread of a cell differs; the second with fewer seeds than the third."""
UNMISTAKABLE = 0.001
"""The p-value below which such a cell is left out where it is not asked about."""
OUTLYING = 0.2
"""The p-value below which a seed of the cell with another spread lies apart."""
POWER = 0.8
MOST_SEEDS = 100

# A relative spread below this is rounding error.
ROUNDING = 1e-12
_DRAWS = 100_000
_LARGEST = 8_000_000
"""Draws times contrasts of the simulated null distribution."""


class Estimate(NamedTuple):
    """A mean over seeds, its 95 % interval, and the p-value of a zero mean. None if it cannot be computed."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None


class Tested(NamedTuple):
    """A contrast with its simultaneous 95 % interval. None if it cannot be computed, or was not tested."""

    n: int
    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None


class Wide(NamedTuple):
    """A cell that varies more than the others together."""

    cell: int
    """Its index."""
    ratio: float
    """Its standard deviation over that of the others; infinite if they do not vary."""
    outlier: int | None
    """The index of the seed that lies far from its others, for which nothing about the cell is tested."""
    is_unmistakable: bool
    """Whether contrasts between the others are tested without it."""


@dataclass(frozen=True)
class Noise:
    """What chance does to a figure from seed to seed, and how contrasts were tested for that reason."""

    sd: float
    """The standard deviation of one figure, pooled over the cells; without what a seed does to all cells alike."""
    correlation: float | None
    """The correlation of two cells over their seeds, the mean over all pairs; None if some cell lacks a seed."""
    wide: Wide | None
    """The cell for which contrasts were also tested by their own spread; None if noise is alike."""
    detectable: float
    """The difference of two cells that would be found in 80 % of such studies."""
    cells: int
    contrasts: int
    """The size of the family."""

    def seeds_to_find(self, difference: float) -> int | None:
        """The number of seeds with which such a difference of two cells is found in 80 % of studies; None above 100.

        It assumes the same pooled noise, and Bonferroni's correction, which needs slightly more seeds than ours.
        """
        for n in range(FEWEST_SEEDS, MOST_SEEDS + 1):
            degrees = (self.cells - 1) * (n - 1)
            reach = _quantile((1 - LEVEL) / 2 / self.contrasts, degrees) + _quantile(1 - POWER, degrees)
            if reach * self.sd * (2 / n) ** 0.5 <= abs(difference):
                return n
        return None


def estimate(samples: np.ndarray, scale: float | None = None) -> Estimate:
    """The mean of samples, one per seed; NaN does not count. The interval is Student's, of this mean alone.

    With fewer than three samples there is no p-value.

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
    reach = _quantile((1 - LEVEL) / 2, n - 1) * error
    p = _p_value(mean / error, n - 1) if n >= FEWEST_SEEDS else None
    return Estimate(n, mean, sd, mean - reach, mean + reach, p)


def sd_interval(sd: float, n: int) -> tuple[float, float]:
    """The 95 % interval of the standard deviation of normal noise, from that of n samples."""
    low, high = (float(sd * ((n - 1) / stats.chi2.ppf(p, n - 1)) ** 0.5) for p in ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return low, high


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected by Holm's method (1979); None is not part of the family."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        adjusted[index] = largest = max(largest, min(1.0, (len(order) - rank) * p))
    return adjusted


def false_discovery_rates(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values as false discovery rates under any dependence (Benjamini and Yekutieli 2001); None stays None."""
    known = [p for p in p_values if p is not None]
    rates = iter(stats.false_discovery_control(known, method="by").tolist() if known else [])
    return [None if p is None else next(rates) for p in p_values]


def simultaneous(figures: np.ndarray, weights: np.ndarray, tables: float = 1) -> tuple[list[Tested], Noise | None]:
    """Test contrasts of the cells' means, all at once.

    Args:
        figures: (seeds, cells), NaN where a figure is missing; every cell has at least one.
        weights: (contrasts, cells); the weights of a contrast sum to zero.
        tables: the number of such tables in the family, over which p-values are corrected by Bonferroni's method; or
            the size of the family over the number of these contrasts.

    Returns:
        One result per contrast, and the noise; None if no cell has two figures, or nothing varies.
    """
    first, signs, place = _distinct(weights)
    tested, noise = _simultaneous(figures[np.isfinite(figures).any(axis=1)], weights[first], tables)
    return [_turned(tested[index], sign) for index, sign in zip(place, signs, strict=True)], noise


def _distinct(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of contrasts that differ by more than their sign; each row's sign and place among them.

    The effect of a factor with two levels is also a pair, and counts once.
    """
    signs = np.array([np.sign(one[np.flatnonzero(one)[0]]) for one in weights])
    _, first, place = np.unique(np.round(weights * signs[:, None], 12), axis=0, return_index=True, return_inverse=True)
    return first, signs * signs[first][place], place


def _turned(one: Tested, sign: float) -> Tested:
    if sign > 0 or one.value is None:
        return one
    low, high = (None if end is None else 0 - end for end in (one.high, one.low))  # 0 - x: -x would turn 0 into -0
    return one._replace(value=0 - one.value, low=low, high=high)


def _simultaneous(figures: np.ndarray, weights: np.ndarray, tables: float) -> tuple[list[Tested], Noise | None]:
    counts = np.isfinite(figures).sum(axis=0)
    scale = float(np.nanmax(np.abs(figures)))
    values = weights @ np.nanmean(figures, axis=0)
    values[np.abs(values) <= ROUNDING * scale] = 0.0
    fewest = [int(counts[one != 0].min()) for one in weights]
    sd, degrees = _pooled(figures)
    if degrees < 1:
        return [Tested(n, float(value)) for n, value in zip(fewest, values, strict=True)], None
    if sd <= ROUNDING * scale:
        return [_constant(n, float(value)) for n, value in zip(fewest, values, strict=True)], None
    wide = _wide(figures)
    untested = np.array(fewest) < FEWEST_SEEDS
    if wide is not None and wide.outlier is not None:
        untested |= weights[:, wide.cell] != 0
    p, p_adjusted, reach = _by_pooled_noise(values, weights, counts, sd, degrees, tables)
    if wide is not None:
        stricter = zip((p, p_adjusted, reach), _by_own_spread(figures, values, weights, tables), strict=True)
        p, p_adjusted, reach = (np.maximum(*both) for both in stricter)
    tested = [
        Tested(
            n,
            float(value),
            *(() if none else (float(value - own), float(value + own), float(one), float(adjusted))),
        )
        for n, value, own, none, one, adjusted in zip(fewest, values, reach, untested, p, p_adjusted, strict=True)
    ]
    between = weights[:, wide.cell] == 0 if wide is not None and wide.is_unmistakable else np.array([False])
    if wide is not None and between.any():
        others = np.arange(len(counts)) != wide.cell
        without = _simultaneous(figures[:, others], weights[np.ix_(between, others)], tables / between.mean())[0]
        for index, one in zip(np.flatnonzero(between), without, strict=True):
            tested[int(index)] = one
    error_of_two = sd * (2 / float(np.median(counts))) ** 0.5
    critical = _quantile((1 - LEVEL) / tables / 2 / len(weights), degrees)
    noise = Noise(
        sd=sd,
        correlation=_correlation(figures),
        wide=wide,
        detectable=(critical + _quantile(1 - POWER, degrees)) * error_of_two,
        cells=len(counts),
        contrasts=len(weights),
    )
    return tested, noise


def _constant(n: int, value: float) -> Tested:
    """A contrast of figures that do not vary."""
    p = 1.0 if value == 0 else None
    return Tested(n, value, value, value, p, p) if n > 1 else Tested(n, value)


def _pooled(figures: np.ndarray) -> tuple[float, int]:
    """The standard deviation of one figure, pooled over the cells, and its degrees of freedom.

    Seeds are blocks if the table is complete.
    """
    present = np.isfinite(figures)
    seeds, cells = figures.shape
    left = figures - np.nanmean(figures, axis=0)
    degrees = int(present.sum()) - cells
    if present.all() and cells > 1:
        left = left - (figures.mean(axis=1, keepdims=True) - figures.mean())
        degrees = (cells - 1) * (seeds - 1)
    return float((np.nansum(left**2) / degrees) ** 0.5) if degrees else 0.0, degrees


Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""The p-values of contrasts, corrected ones, and the half-widths of their simultaneous intervals."""


def _by_pooled_noise(
    values: np.ndarray, weights: np.ndarray, counts: np.ndarray, sd: float, degrees: int, tables: float
) -> Found:
    errors = sd * (weights**2 @ (1 / counts)) ** 0.5
    statistics = np.abs(values / errors)
    p = 2 * special.stdtr(degrees, -statistics)
    if len(weights) == 1:
        return p, np.minimum(1.0, tables * p), _quantile((1 - LEVEL) / tables / 2, degrees) * errors
    maxima = _maxima(tuple(counts.tolist()), weights.tobytes(), len(weights), degrees)
    p_adjusted = np.maximum(p, 1 - np.searchsorted(maxima, statistics) / len(maxima))
    critical = float(np.quantile(maxima, 1 - (1 - LEVEL) / tables))
    return p, np.minimum(1.0, tables * p_adjusted), critical * errors


def _by_own_spread(figures: np.ndarray, values: np.ndarray, weights: np.ndarray, tables: float) -> Found:
    errors, degrees = _own_errors(figures, weights)
    p = 2 * special.stdtr(degrees, -np.abs(_ratio(values, errors)))
    critical = special.stdtrit(degrees, 1 - (1 - LEVEL) / tables / 2 / len(weights))
    return p, np.minimum(1.0, tables * len(weights) * p), critical * errors


def _ratio(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Values / errors, and 0 where both are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(values == 0, 0.0, values / errors)


def _own_errors(figures: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The standard error of each contrast from its own cells alone, and its degrees of freedom.

    Of paired differences if the table is complete, else Welch's with Satterthwaite's degrees of freedom.
    """
    counts = np.isfinite(figures).sum(axis=0)
    if np.isfinite(figures).all():
        by_seed = figures @ weights.T
        return by_seed.std(axis=0, ddof=1) / len(figures) ** 0.5, np.full(len(weights), len(figures) - 1.0)
    squares = np.nansum((figures - np.nanmean(figures, axis=0)) ** 2, axis=0)
    variances = np.where(counts > 1, squares / np.maximum(counts - 1, 1) / counts, np.inf)
    parts = np.where(weights == 0, 0.0, weights**2 * np.where(weights == 0, 0.0, variances))
    whole = parts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = 1 / ((parts / whole[:, None]) ** 2 / np.maximum(counts - 1, 1)).sum(axis=1)
    return whole**0.5, np.where(np.isfinite(degrees), degrees, 1.0)


@functools.lru_cache(maxsize=64)
def _maxima(counts: tuple[int, ...], weights: bytes, contrasts: int, degrees: int) -> np.ndarray:
    """Draws of the largest studentised contrast between equal cells, sorted; always the same ones."""
    matrix = np.frombuffer(weights).reshape(contrasts, -1)
    random = np.random.default_rng(0)
    draws = min(_DRAWS, _LARGEST // contrasts)
    errors = (matrix**2 @ (1 / np.array(counts))) ** 0.5
    means = random.standard_normal((draws, len(counts))) / np.array(counts) ** 0.5
    largest = np.abs(means @ (matrix / errors[:, None]).T).max(axis=1)
    return np.sort(largest / (random.chisquare(degrees, draws) / degrees) ** 0.5)


def _wide(figures: np.ndarray) -> Wide | None:
    """The cell that varies more than the others together, if there is one."""
    if np.isfinite(figures).all() and figures.shape[1] > 2:  # without what a seed does to all cells alike
        figures = figures - figures.mean(axis=1, keepdims=True)
    counts = np.isfinite(figures).sum(axis=0)
    level = UNEQUAL_SPREAD if counts.min() >= FEW_SEEDS else UNEQUAL_SPREAD_IN_FEW
    squares = np.nansum((figures - np.nanmean(figures, axis=0)) ** 2, axis=0)
    degrees = counts - 1
    known = np.flatnonzero(degrees > 0)
    if len(known) < 2:
        return None
    of_others = degrees.sum() - degrees[known]
    with np.errstate(divide="ignore"):
        ratios = squares[known] / degrees[known] / ((squares.sum() - squares[known]) / of_others)
    p_values = len(known) * special.fdtrc(degrees[known], of_others, ratios)
    found = int(np.argmin(p_values))
    if p_values[found] >= level:
        return None
    widest = int(known[found])
    outlier, p = _outlier(figures[:, widest])
    return Wide(
        widest, float(ratios[found]) ** 0.5, outlier if p < OUTLYING else None, bool(p_values[found] < UNMISTAKABLE)
    )


def _outlier(samples: np.ndarray) -> tuple[int, float]:
    """The index of the sample furthest from the mean, and its p-value by Grubbs' test (1969)."""
    distances = np.abs(samples - np.nanmean(samples))
    furthest = int(np.nanargmax(distances))
    n = int(np.isfinite(samples).sum())
    sd = float(np.nanstd(samples, ddof=1)) if n > 1 else 0.0
    if n < FEWEST_SEEDS or not sd:
        return furthest, 1.0
    share = min((distances[furthest] / sd) ** 2 * n / (n - 1) ** 2, 1.0)  # of its largest possible value
    t = (share * (n - 2) / (1 - share)) ** 0.5 if share < 1 else np.inf
    return furthest, min(1.0, n * _p_value(t, n - 2))


def _correlation(figures: np.ndarray) -> float | None:
    if not np.isfinite(figures).all() or len(figures) < FEWEST_SEEDS or (figures.std(axis=0) == 0).any():
        return None
    matrix = np.corrcoef(figures.T)
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


def _p_value(t: float, degrees: float) -> float:
    return 2 * float(special.stdtr(degrees, -abs(t)))


def _quantile(tail: float, degrees: float) -> float:
    """Student's t that is exceeded with this probability."""
    return float(special.stdtrit(degrees, 1 - tail))
