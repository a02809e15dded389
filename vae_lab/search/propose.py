"""The next values of a search, as a function of its record."""

import warnings
from random import Random
from typing import TYPE_CHECKING, get_args

from vae_lab.results.trials import Sampler, Trial, Trials, Value, bare
from vae_lab.search.space import point, size, tidy
from vae_lab.study.searches import as_study, distribution

if TYPE_CHECKING:
    import optuna


def propose(record: Trials, trials: list[Trial]) -> dict[str, Value]:
    """The values of the next trial.

    They depend on the record, the running trials and the seed. Each trial has its own random stream, so that
    interrupting a search does not change them. In a finite space nothing is tried twice before all has been tried: in
    the place of a repetition comes a point drawn from those that are left.
    """
    number = len(record.trials) + len(trials)
    study = as_study(record.plus(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental features of optuna
        study.sampler = _sampler(record.sampler, record.seed, number)
        asked = study.ask({bare(key): distribution(parameter) for key, parameter in record.space.items()}).params
    values = {key: tidy(asked[bare(key)], parameter) for key, parameter in record.space.items()}
    tried = {tuple(one.values[key] for key in record.space) for one in (*record.trials, *trials)}
    points = size(record.space)
    if tuple(values.values()) not in tried or points is None or len(tried) >= points:
        return values
    return _untried(record, tried, points, number)


def _untried(record: Trials, tried: set[tuple[Value, ...]], points: int, number: int) -> dict[str, Value]:
    """A point of a finite space that no trial has; at least one is left."""
    random = Random(f"{record.seed}/{number}")
    while len(tried) < points / 2:  # most draws are new
        drawn = point(record.space, random.randrange(points))
        if tuple(drawn.values()) not in tried:
            return drawn
    left = [found for index in range(points) if tuple((found := point(record.space, index)).values()) not in tried]
    return random.choice(left)


def _sampler(name: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
    from optuna import samplers

    assert name in get_args(Sampler)
    import numpy as np

    stream = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "random":
        return samplers.RandomSampler(seed=stream)
    if name == "gp":
        return samplers.GPSampler(seed=stream, deterministic_objective=True)
    return samplers.TPESampler(seed=stream)
