"""Intervals that hold for other test images too, from the figures of each image. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from vae_lab.study.contrasts import LEVEL, Estimate, estimate
from vae_lab.study.gather import Study


class Crossed(NamedTuple):
    """A mean over seeds and images, with its 95 % interval for other seeds and other images of the same kind."""

    seeds: int
    images: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """The difference a - b of two cells, on the same images: by seeds alone, and by seeds and images."""

    a: str
    b: str
    of_seeds: Estimate
    of_both: Crossed


@dataclass(frozen=True)
class BeyondImages:
    """What a figure's mean says about other test images."""

    cells: Mapping[str, Crossed]
    """Of the cells whose runs all have the figure of each image."""
    differences: Sequence[Difference]
    """Of a cell from each other one."""

    def container(self) -> dict[str, Any]:
        """As in `statistics.json`."""
        return {
            "cells": {cell: crossed._asdict() for cell, crossed in self.cells.items()},
            "differences": [
                {"a": one.a, "b": one.b, "of_seeds": one.of_seeds._asdict(), "of_both": one.of_both._asdict()}
                for one in self.differences
            ],
        }


def beyond_images(study: Study, metric: str, first: str | None = None) -> BeyondImages | None:
    """What the means of a test figure say about other test images.

    Args:
        study: the runs.
        metric: such as `test.mse`.
        first: the cell from which the others differ; by default the first.

    Returns:
        None if no run has the figure of each image.
    """
    tables = {cell: table for cell in study.cells if (table := _table(study, cell, metric)) is not None}
    if not tables:
        return None
    first = first if first in tables else next(iter(tables))
    others = [cell for cell in tables if cell != first and study.comparable(metric, (first, cell))]
    differences = []
    for cell in others:
        seeds = [seed for seed in tables[cell] if seed in tables[first]]
        pairs = [(tables[cell][seed], tables[first][seed]) for seed in seeds]
        if pairs and len({len(one) for pair in pairs for one in pair}) == 1:
            apart = np.stack([one - other for one, other in pairs])
            differences.append(Difference(cell, first, estimate(apart.mean(1)), crossed(apart)))
    cells = {cell: crossed(np.stack([*table.values()])) for cell, table in tables.items()}
    return BeyondImages(cells, differences)


def _table(study: Study, cell: str, metric: str) -> dict[int, np.ndarray] | None:
    """Seed → the figure of each image; None unless every run of the cell has it for as many images."""
    name = metric.removeprefix("test.")
    found = {
        seed: values.astype(float)
        for (of, seed), images in study.test_images.items()
        if of == cell and (values := images.get(name)) is not None and np.isfinite(values).all()
    }
    complete = found and len(found) == len(study.of(cell))
    return found if complete and len({*map(len, found.values())}) == 1 else None


def crossed(values: np.ndarray) -> Crossed:
    """The mean of a figure over seeds and images, both drawn at random and crossed: each seed met each image.

    For the variance components of y = μ + seed + image + rest, the variance of the mean is σ²(seed)/S + σ²(image)/I +
    σ²(rest)/SI: the variance of the seeds' means over S, plus that of the images' means over I, less the rest, which is
    in both. The interval is Student's with Satterthwaite's degrees of freedom. One seed tells of images only.

    Args:
        values: (seeds, images).
    """
    seeds, images = values.shape
    mean = float(values.mean())
    parts = []
    if seeds > 1:
        parts.append((float(values.mean(1).var(ddof=1)) / seeds, seeds - 1))
    if images > 1:
        parts.append((float(values.mean(0).var(ddof=1)) / images, images - 1))
    if len(parts) == 2:
        rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + mean
        degrees = (seeds - 1) * (images - 1)
        parts.append((-float(np.square(rest).sum()) / degrees / (seeds * images), degrees))
    # Of two seeds the difference can be negative by chance.
    variance = max(sum(part for part, _ in parts), *(part for part, _ in parts), 0.0) if parts else 0.0
    if not variance:
        return Crossed(seeds, images, mean, None, None)
    degrees = variance**2 / sum(part**2 / own for part, own in parts)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * variance**0.5
    return Crossed(seeds, images, mean, mean - reach, mean + reach)


def measured_per_image(study: Study) -> Iterable[str]:
    """The test figures that runs have for each image, in the order of the report."""
    known = {name for images in study.test_images.values() for name in images}
    return [metric for metric in study.metrics if metric.removeprefix("test.") in known and metric.startswith("test.")]
