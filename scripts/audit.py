"""Audit what reports claim, by simulation and by closed forms: `python scripts/audit.py`.

It simulates studies whose truth is known, repeats the closed-form tests of densities, bounds and metrics, and writes
the figures into docs/trust.md. The exit code is pytest's, 1 if a closed-form test fails.
"""

import argparse
import itertools
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from vae_lab.study.statistics import Comparison, Effect, Pair, compare, explored

DOCUMENT = Path(__file__).parents[1] / "docs" / "trust.md"
BEGIN, END = "<!-- figures: written by scripts/audit.py -->", "<!-- end of figures -->"
CLOSED_FORMS = (
    "tests/test_densities.py",
    "tests/test_metrics.py",
    "tests/test_samplers.py",
    "tests/test_rate_distortion.py",
)
DESIGNS = {"2×2": (2, 2), "3×3": (3, 3), "12 cells": (12,)}
SEEDS = (3, 5, 10)
EXPLORATORY = 4
"""Further figures of each study, half of whose noise is that of the metric of record."""


class Noise(NamedTuple):
    """Noise with mean 0 and standard deviation 1; in the last cells it is larger."""

    name: str
    kind: str
    ratio: float = 1.0
    share: float = 0.0
    """Of the cells that have more noise; at least one has."""
    seed: float = 0.5
    """The standard deviation of what a seed does to all cells alike."""

    def draw(self, random: np.random.Generator, seeds: int, cells: int) -> np.ndarray:
        """(seeds, cells), plus what a seed does to all cells alike."""
        if self.kind == "normal":
            noise = random.normal(size=(seeds, cells))
        elif self.kind == "t3":
            noise = random.standard_t(3, size=(seeds, cells)) / 3**0.5
        else:
            sigma = float(self.kind)
            noise = np.exp(sigma * random.normal(size=(seeds, cells))) - np.exp(sigma**2 / 2)
            noise /= ((np.exp(sigma**2) - 1) * np.exp(sigma**2)) ** 0.5
        noise[:, -max(1, round(self.share * cells)) :] *= self.ratio
        return np.asarray(noise + self.seed * random.normal(size=(seeds, 1)))


NOISES = (
    Noise("normal", "normal"),
    Noise("t, 3 degrees of freedom", "t3"),
    Noise("normal, one cell 5 times as wide, seeds that differ much", "normal", 5, seed=5.0),
    Noise("normal, half of the cells 5 times as wide", "normal", 5, 0.5),
    Noise("lognormal (0.5), one cell 3 times as wide", "0.5", 3),
    Noise("lognormal (1), one cell 5 times as wide", "1.0", 5),
)


class Counts(NamedTuple):
    """Shares of the studies of one kind."""

    claims: float
    """With any claim about the metric of record."""
    exploratory: float
    """With any claim about another figure."""
    any: float
    together: float
    """In which all intervals of pairs and effects cover the truth."""
    cells: float
    """Of the intervals of cells that cover the truth."""
    lowest: float
    """Of the intervals of the lowest cell that do."""
    power: float
    """In which a cell that is three deviations better is told from another."""


def studies(
    random: np.random.Generator, shape: tuple[int, ...], seeds: int, noise: Noise, better: float, others: int
) -> Iterator[dict[str, Comparison]]:
    """Studies in which the first cell is better by so many deviations, no other differs, and so many figures beside."""
    factors = {f"factor{axis}": tuple(map(str, range(size))) for axis, size in enumerate(shape)}
    levels = {"-".join(place): place for place in itertools.product(*factors.values())}
    means = np.zeros(len(levels))
    means[0] = -better
    while True:
        record = noise.draw(random, seeds, len(levels))
        figures = {"record": record + means}
        for index in range(others):
            figures[f"other{index}"] = (record + noise.draw(random, seeds, len(levels))) / 2**0.5
        tables = {name: pd.DataFrame(rows, columns=list(levels)) for name, rows in figures.items()}
        yield explored({name: compare(rows, None, factors, levels) for name, rows in tables.items()}, "record")


def count(shape: tuple[int, ...], seeds: int, noise: Noise, repeats: int) -> Counts:
    """Simulate this kind of study."""
    random = np.random.default_rng([*shape, seeds, NOISES.index(noise)])
    rows = []
    null = studies(random, shape, seeds, noise, 0.0, EXPLORATORY)
    real = studies(random, shape, seeds, noise, 3.0, 0)
    for _ in range(repeats):
        found = next(null)
        record = found.pop("record")
        tested: list[Pair | Effect] = [*record.pairs, *record.effects]
        own = any(one.different for one in tested)
        other = any(one.different for each in found.values() for one in [*each.pairs, *each.effects])
        cells = list(record.cells.values())
        lowest = min(cells, key=lambda cell: cell.mean or 0.0)
        covers = [_holds(cell.low, cell.high) for cell in cells]
        rows.append(
            (
                own, other, own or other, all(_holds(one.low, one.high) for one in tested),
                np.mean(covers), _holds(lowest.low, lowest.high), next(real)["record"].pairs[0].different,
            )
        )  # fmt: skip
    return Counts(*np.mean(np.array(rows, dtype=float), axis=0).tolist())


def _holds(low: float | None, high: float | None) -> bool:
    return low is None or high is None or low <= 0 <= high  # what is not tested says nothing wrong


def _per_cent(share: float, repeats: int) -> str:
    """A share of simulated studies with its 95 % interval."""
    interval: Any = stats.binomtest(round(share * repeats), repeats).proportion_ci()
    return f"{100 * share:.1f} ({100 * interval.low:.1f}–{100 * interval.high:.1f})"


def tables(found: Mapping[tuple[str, int, str], Counts], repeats: int) -> Iterator[str]:
    """The figures as Markdown."""
    for noise in NOISES:
        yield f"\n**Noise: {noise.name}**\n"
        yield "| design | seeds | a claim by the metric of record, % | by others, % | any, % | all intervals cover, % |"
        yield "|---|--:|--:|--:|--:|--:|"
        for design, seeds in itertools.product(DESIGNS, SEEDS):
            one = found[design, seeds, noise.name]
            shares = (_per_cent(share, repeats) for share in (one.claims, one.exploratory, one.any, one.together))
            yield f"| {design} | {seeds} | {' | '.join(shares)} |"
    yield "\n**Power and single cells**, in per cent\n"
    yield "| design | seeds | noise | a cell 3 σ better is told apart | intervals of cells cover | that of the lowest |"
    yield "|---|--:|---|--:|--:|--:|"
    for noise, design, seeds in itertools.product(NOISES, DESIGNS, SEEDS):
        one = found[design, seeds, noise.name]
        rounded = " | ".join(f"{100 * share:.0f}" for share in (one.power, one.cells, one.lowest))
        yield f"| {design} | {seeds} | {noise.name} | {rounded} |"


def main() -> int:
    """Simulate, test, and write the figures into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=500, metavar="N", help="studies of each kind (500)")
    parser.add_argument("--no-tests", action="store_true", help="simulate only")
    given = parser.parse_args()
    started = time.monotonic()
    found = {}
    for noise, (design, shape), seeds in itertools.product(NOISES, DESIGNS.items(), SEEDS):
        found[design, seeds, noise.name] = one = count(shape, seeds, noise, given.repeats)
        print(f"{noise.name}, {design}, {seeds} seeds: claims {one.any:.3f}, power {one.power:.2f}", flush=True)
    tested = None
    if not given.no_tests:
        tested = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *CLOSED_FORMS], check=False, text=True, capture_output=True
        )
        print(tested.stdout[-2000:] + tested.stderr[-2000:])
    minutes = (time.monotonic() - started) / 60
    command = f"python scripts/audit.py --repeats {given.repeats}{' --no-tests' * given.no_tests}"
    lines = [
        f"`{command}` in {minutes:.0f} minutes; "
        f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {version('scipy')}.",
        *([f"\nClosed-form tests: {(tested.stdout.strip().splitlines() or ['none ran'])[-1]}."] if tested else []),
        *tables(found, given.repeats),
    ]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCUMENT.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")
    return tested.returncode if tested else 0


if __name__ == "__main__":
    sys.exit(main())
