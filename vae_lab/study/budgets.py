"""What a search may find with a given number of trials, so that two are compared at equal budgets."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vae_lab.results.trials import Trials
from vae_lab.study.contrasts import LEVEL

RESAMPLES = 2000
FEWEST_TRIALS = 3
RANDOM = "random"
"""The sampler whose trials do not depend on each other."""


class Budget(NamedTuple):
    """The best figure that a search is expected to find, by its number of trials from 1 on, with 95 % intervals."""

    best: np.ndarray
    low: np.ndarray
    high: np.ndarray


def is_comparable(record: Trials) -> bool:
    """Whether what a search finds with fewer trials follows from those it has: they do not depend on each other."""
    return record.sampler == RANDOM and len(record.finished) >= FEWEST_TRIALS


def budget(record: Trials) -> Budget:
    """The expected best figure of 1, 2, … of the trials that have ended (Dodge et al. 2019, "Show Your Work").

    A failed trial counts as the worst that finished. The interval is the bootstrap's, over the trials. With a budget of
    more than half of their number it is far too narrow, since nothing better than the best trial can be drawn: of 20
    lognormal trials it covers 85 % for one, 77 % for ten and 61 % for all.
    """
    known = [trial.loss for trial in record.finished]
    failed = sum(trial.state == "failed" for trial in record.trials)
    losses = np.array([*known, *known[-1:] * failed], dtype=float)
    generator = np.random.default_rng(0)
    drawn = np.sort(generator.choice(losses, (RESAMPLES, len(losses))), axis=1)
    expected = expected_lowest(losses)
    ends = np.quantile(_lowest(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    if record.is_lower_better:
        return Budget(expected, ends[0], ends[1])
    return Budget(-expected, -ends[1], -ends[0])


def expected_lowest(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """E[min of n draws] with replacement, for n = 1, …, N: Σᵢ lᵢ · [((N − i + 1)/N)ⁿ − ((N − i)/N)ⁿ], l ascending."""
    return _lowest(np.sort(np.asarray(losses, dtype=float))[None])[0]


def _lowest(ascending: np.ndarray) -> np.ndarray:
    count = ascending.shape[1]
    reached = (np.arange(count, -1, -1)[:, None] / count) ** np.arange(1, count + 1)  # (N + 1, n)
    found: np.ndarray = ascending @ (reached[:-1] - reached[1:])
    return found
