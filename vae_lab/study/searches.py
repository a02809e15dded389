"""A search as a study of optuna's, and which keys matter. optuna is imported when asked."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vae_lab.results.trials import Choice, Number, Trials, TrialsError, bare, read_trials

if TYPE_CHECKING:
    import optuna

IMPORTANCE_FROM = 4
"""Finished trials below which nothing is said about which key matters."""

WEIGHTED = (
    "val.total weighs the KL term by the objective that is searched, so that a small weight looks good by itself; "
    "hydra.sweeper.metric=val.elbo compares across weights."
)


def as_study(record: Trials) -> "optuna.Study":
    """The record as a study of optuna's, in memory."""
    import optuna
    from optuna.trial import TrialState, create_trial

    states = {"open": TrialState.RUNNING, "finished": TrialState.COMPLETE, "failed": TrialState.FAIL}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="minimize")
        distributions = {bare(key): distribution(parameter) for key, parameter in record.space.items()}
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


def distribution(parameter: Choice | Number) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    if isinstance(parameter, Choice):
        return distributions.CategoricalDistribution(parameter.choices)
    if parameter.whole:
        step = int(parameter.step or 1)
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def weighs_what_it_searches(record: Trials) -> bool:
    """Whether the figure that a search goes by changes its meaning with a key that is searched."""
    return record.metric == "val.total" and any(key.lstrip("+~").startswith("objective") for key in record.space)
