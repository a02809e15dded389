"""optuna's part of a search: which values to try next, and which keys matter, as functions of the record."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from vae_lab.results.trials import Choice, Number, Trial, Trials, TrialsError, Value, read_trials
from vae_lab.search.options import Sampler
from vae_lab.search.space import bare, tidy

if TYPE_CHECKING:
    import optuna

IMPORTANCE_FROM = 4
"""Finished trials below which nothing is said about which key matters."""


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
        asked = study.ask({bare(key): _distribution(parameter) for key, parameter in record.space.items()}).params
    return {key: tidy(asked[bare(key)], parameter) for key, parameter in record.space.items()}


def as_study(record: Trials) -> "optuna.Study":
    """The record as a study of optuna's, in memory."""
    import optuna
    from optuna.trial import TrialState, create_trial

    states = {"open": TrialState.RUNNING, "finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="minimize")
        distributions = {bare(key): _distribution(parameter) for key, parameter in record.space.items()}
        for trial in record.trials:
            study.add_trial(
                create_trial(
                    state=states[trial.state],
                    params={bare(key): value for key, value in trial.values.items()},
                    distributions=distributions,
                    value=trial.loss,
                    user_attrs={"run": trial.run},
                )
            )
    finally:
        optuna.logging.set_verbosity(before)
    return study


def load(folder: Path | str) -> "optuna.Study":
    """The search under `outputs/<name>` as a study of optuna's, for its own plots and tools.

    Raises:
        TrialsError: if there is none.
    """
    record = read_trials(Path(folder))
    if record is None:
        raise TrialsError(f"there is no search under {folder}")
    return as_study(record)


def importances(record: Trials) -> Mapping[str, float]:
    """Which part of the loss's variance over the space each key accounts for; empty where too few trials have finished.

    The parts sum to 1. By fANOVA: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter
    Importance, 2014.
    """
    if len(record.finished) < IMPORTANCE_FROM or len({one.loss for one in record.finished}) < 2:
        return {}
    import optuna

    study = as_study(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}


def _distribution(parameter: Choice | Number) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    if isinstance(parameter, Choice):
        return distributions.CategoricalDistribution(parameter.choices)
    if parameter.whole:
        step = int(parameter.step or 1)
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _sampler(name: str, seed: int, number: int) -> "optuna.samplers.BaseSampler":
    from optuna import samplers

    assert name in get_args(Sampler)
    stream = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "random":
        return samplers.RandomSampler(seed=stream)
    if name == "gp":
        return samplers.GPSampler(seed=stream, deterministic_objective=True)
    return samplers.TPESampler(seed=stream)
