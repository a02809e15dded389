"""The next values of a search, as a function of its record."""

import warnings
from typing import TYPE_CHECKING, get_args

from vae_lab.results.trials import Sampler, Trial, Trials, Value, bare
from vae_lab.search.space import tidy
from vae_lab.study.searches import as_study, distribution

if TYPE_CHECKING:
    import optuna


def propose(record: Trials, trials: list[Trial]) -> dict[str, Value]:
    """The values of the next trial.

    They depend on the record, the running trials and the seed. Each trial has its own random stream, so that
    interrupting a search does not change them.
    """
    number = len(record.trials) + len(trials)
    study = as_study(record.plus(trials))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about experimental features of optuna
        study.sampler = _sampler(record.sampler, record.seed, number)
        asked = study.ask({bare(key): distribution(parameter) for key, parameter in record.space.items()}).params
    return {key: tidy(asked[bare(key)], parameter) for key, parameter in record.space.items()}


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
