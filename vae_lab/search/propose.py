"""Which values a search tries next, as a function of its record."""

import warnings
from typing import TYPE_CHECKING, get_args

import numpy as np

from vae_lab.results.trials import Sampler, Trial, Trials, Value, bare
from vae_lab.search.space import tidy
from vae_lab.study.searches import as_study, distribution

if TYPE_CHECKING:
    import optuna


def propose(record: Trials, trials: list[Trial]) -> dict[str, Value]:
    """The values of the next trial.

    They follow from the record, the trials that are under way and the seed: each trial has a random stream of its own,
    so that it does not matter in how many sittings a search was made.
    """
    number = len(record.trials) + len(trials)
    study = as_study(record.plus(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is experimental in optuna
        study.sampler = _sampler(record.sampler, record.seed, number)
        asked = study.ask({bare(key): distribution(parameter) for key, parameter in record.space.items()}).params
    return {key: tidy(asked[bare(key)], parameter) for key, parameter in record.space.items()}


def _sampler(name: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
    from optuna import samplers

    assert name in get_args(Sampler)
    stream = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "random":
        return samplers.RandomSampler(seed=stream)
    if name == "gp":
        return samplers.GPSampler(seed=stream, deterministic_objective=True)
    return samplers.TPESampler(seed=stream)
