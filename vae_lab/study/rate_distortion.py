"""Rate against distortion over a sweep of β, and the Bjøntegaard difference of two such curves. Imports no torch.

The rate is KL(q(z | x) ‖ p(z)) in nats per image and the distortion −E log p(x | z), or the mean squared error where
models do not share a likelihood (Alemi et al. 2018, "Fixing a Broken ELBO"). The difference of two curves is the mean
of their distance over the logarithm of the rates that both have, or over the distortions that both have (Bjøntegaard
2001, "Calculation of average PSNR differences between RD-curves"). Points are joined by piecewise cubic Hermite
interpolation (PCHIP), as in the video standards that came after, because it keeps falling points falling.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from vae_lab.results import figures
from vae_lab.study.contrasts import LEVEL, estimate, holm
from vae_lab.study.gather import Study, is_number
from vae_lab.study.statistics import Cell, Pair

BETA = "objective.beta"
FEWEST = 3
"""The number of values of β that make a curve."""

DECIBELS = figures.Figure("distortion", "distortion", "dB", 2, "lower")
IN_NATS = figures.Figure("distortion", "distortion", "nats", 2, "lower")
PERCENT = figures.Figure("rate", "rate", "%", 1, "lower")


@dataclass(frozen=True)
class Point:
    """A cell of a curve: the means over its seeds."""

    beta: float
    cell: str
    rate: Cell
    distortion: Cell


@dataclass(frozen=True)
class Difference:
    """How far curve a lies from curve b, averaged where both are known: the mean of a − b over their seeds."""

    distortion: Pair
    """At equal rate: in nats, or for mean squared errors in decibels."""
    rate: Pair
    """At equal distortion, in per cent of the rate of b."""
    rates: tuple[float, float] | None
    """The rates, in nats, that both curves have in every seed."""
    reason: str | None
    """Why a difference or some of its seeds are missing."""


@dataclass(frozen=True)
class RateDistortion:
    """The curves of a study, and the difference of each from the first."""

    metric: str
    """The figure that is the distortion."""
    difference: figures.Figure
    """The description of a difference in distortion."""
    curves: Mapping[str, Sequence[Point]]
    differences: Sequence[Difference]

    @property
    def is_in_nats(self) -> bool:
        """Whether the distortion is −E log p(x | z), not a mean squared error."""
        return self.difference is IN_NATS

    def container(self) -> dict[str, Any]:
        """The content as a dictionary, as in `statistics.json`."""
        return {
            "rate": figures.NATS,
            "distortion": {"figure": self.metric, "difference_in": self.difference.unit},
            "curves": {name: [asdict(point) for point in points] for name, points in self.curves.items()},
            "differences": [asdict(one) for one in self.differences],
        }


def rate_distortion(study: Study) -> RateDistortion | None:
    """The curves of a study; None unless β was swept over at least three values for some architecture.

    An architecture is whatever cells have in common beside β. One that was trained or tested under other conditions
    than the first has no curve.
    """
    if BETA not in study.factors:
        return None
    rates = _rates(study)
    lines = {name: cells for name, cells in _lines(study, rates).items() if len(cells) >= FEWEST}
    if not lines:
        return None
    first, *_ = lines
    alike = {name: line for name, line in lines.items() if _are_alike(study, [*lines[first].values(), *line.values()])}
    if not alike:
        return None
    metric, described = _distortion(study, [cell for line in alike.values() for cell in line.values()])
    distortions = study.values(metric)
    curves = {
        name: [
            Point(beta, cell, *(Cell(*estimate(of[cell].to_numpy(dtype=float))[:5]) for of in (rates, distortions)))
            for beta, cell in line.items()
        ]
        for name, line in alike.items()
    }
    values = distortions.to_numpy(dtype=float)
    if described is DECIBELS:
        values = 10 * np.log10(np.where(values > 0, values, np.nan))
    both = np.stack([rates.to_numpy(dtype=float), values], axis=-1)
    columns = {name: [study.cells.index(cell) for cell in line.values()] for name, line in alike.items()}
    differences = [
        _difference(name, first, both[:, columns[name]], both[:, columns[first]], study.seeds)
        for name in alike
        if name != first
    ]
    return RateDistortion(metric, described, curves, _adjusted(differences))


def _rates(study: Study) -> pd.DataFrame:
    """The test KL divergence in nats per image: one row per seed, one column per cell."""
    factors = {}
    for cell in study.cells:
        runs = study.of(cell)
        unit = runs[0].result.terms.get("kl") if runs else None
        codes = [value for key, value in runs[0].config.items() if _is_size(key)] if runs else []
        per_dimension = math.prod(codes) if codes and all(type(one) is int for one in codes) else math.nan
        factors[cell] = {figures.NATS: 1.0, figures.NATS_PER_DIMENSION: per_dimension}.get(str(unit), math.nan)
    return study.values("test.kl") * pd.Series(factors)


def _is_size(key: str) -> bool:
    return key == "latent.dim" or key.startswith("latent.shape[")


def _lines(study: Study, rates: pd.DataFrame) -> dict[str, dict[float, str]]:
    """Architecture → β → cell, in the order of β, of the cells that have a rate."""
    axis = list(study.factors).index(BETA)
    found: dict[str, dict[float, str]] = {}
    for cell in study.cells:
        level = study.levels[cell][axis]
        if is_number(level) and rates[cell].notna().any():
            found.setdefault(study.label(cell, without=BETA), {}).setdefault(float(level), cell)
    return {name: dict(sorted(line.items())) for name, line in found.items()}


def _are_alike(study: Study, cells: Sequence[str]) -> bool:
    """Whether cells were trained and tested under the same conditions but for β."""
    found = {tuple(item for item in study.conditions[cell].items() if item[0] != BETA) for cell in cells}
    return len(found) == 1


def _distortion(study: Study, cells: Sequence[str]) -> tuple[str, figures.Figure]:
    """The figure that is the distortion of these cells, and how a difference in it is described."""
    runs = [study.of(cell)[0] for cell in cells]
    units = {run.result.terms.get("reconstruction") for run in runs}
    likelihoods = {
        tuple((key, str(value)) for key, value in run.config.items() if key.startswith("likelihood.")) for run in runs
    }
    if units == {figures.NATS} and len(likelihoods) == 1:
        return "test.reconstruction", IN_NATS
    return ("test.reconstruction" if units == {figures.SQUARED_ERROR} else "test.mse"), DECIBELS


def _difference(name: str, other: str, a: np.ndarray, b: np.ndarray, seeds: Sequence[int]) -> Difference:
    """The difference of two curves, each (seeds, points, 2): a rate in nats and a distortion per point."""
    vertical, horizontal = np.full((2, len(seeds)), np.nan)
    ranges, reasons = [], []
    for index, seed in enumerate(seeds):
        try:
            vertical[index], shared = mean_distance(*map(_of_rate, (a[index], b[index])))
            ranges.append(shared)
            logarithm, _ = mean_distance(*map(_of_distortion, (a[index], b[index])))
            horizontal[index] = 100 * math.expm1(logarithm)
        except ValueError as error:
            reasons.append(f"seed {seed}: {error}")
    both = [np.exp(shared) for shared in ranges]
    rates = (float(max(one[0] for one in both)), float(min(one[1] for one in both))) if both else None

    def pair(samples: np.ndarray, magnitude: float) -> Pair:
        one = estimate(samples, magnitude)
        return Pair(name, other, one.n, one.mean, one.low, one.high, one.p, None, different=False)

    largest = float(np.nanmax(np.abs(b[..., 1]), initial=0.0))
    return Difference(pair(vertical, largest), pair(horizontal, 100.0), rates, "; ".join(reasons) or None)


def _adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """Differences with p-values corrected over all curves by Holm's method."""
    pairs = {}
    for kind in ("distortion", "rate"):
        found = [getattr(one, kind) for one in differences]
        p_values = holm([pair.p for pair in found])
        pairs[kind] = [
            replace(pair, p_adjusted=p, different=p is not None and p < 1 - LEVEL)
            for pair, p in zip(found, p_values, strict=True)
        ]
    return [
        replace(one, distortion=distortion, rate=rate)
        for one, distortion, rate in zip(differences, pairs["distortion"], pairs["rate"], strict=True)
    ]


def _of_rate(points: np.ndarray) -> np.ndarray:
    """(n, 2) → the distortion as a function of the logarithm of the rate: (m, 2), in its order.

    Raises:
        ValueError: if it does not fall strictly, or has fewer than two points.
    """
    known = points[np.isfinite(points).all(axis=1)]
    known = known[np.argsort(known[:, 0], kind="stable")]
    if len(known) < 2:
        raise ValueError("fewer than two points of a curve are known")
    if known[0, 0] <= 0:
        raise ValueError("a rate is not above 0 nats")
    if not (np.diff(known[:, 0]) > 0).all() or not (np.diff(known[:, 1]) < 0).all():
        raise ValueError("the distortion of a curve does not fall as its rate grows")
    return np.column_stack([np.log(known[:, 0]), known[:, 1]])


def _of_distortion(points: np.ndarray) -> np.ndarray:
    """(n, 2) → the logarithm of the rate as a function of the distortion: (m, 2), in its order."""
    return _of_rate(points)[::-1, ::-1]


def mean_distance(a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The mean of a − b over the x that both have, and these x.

    Args:
        a: (n, 2), points of a curve, x ascending.
        b: (m, 2), those of the other.

    Raises:
        ValueError: if no x is common.
    """
    low, high = max(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0])
    if low >= high:
        raise ValueError("the curves do not overlap")
    one, other = (PchipInterpolator(curve[:, 0], curve[:, 1]).integrate(low, high) for curve in (a, b))
    return float(one - other) / (high - low), (low, high)
