"""Convert a search to an optuna study, and compute which keys matter. optuna is imported only when needed."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vae_lab.results.trials import Choice, Number, Trials, TrialsError, bare, read_trials

if TYPE_CHECKING:
    import optuna

IMPORTANCE_FROM = 4
"""The number of finished trials from which importances are computed."""

WEIGHTED = (
    "what val.total means depends on the keys that are searched, so that a small KL weight, or under mse_kl another "
    "latent.dim, looks good by itself; hydra.sweeper.metric=val.elbo compares across them."
)


def as_study(record: Trials) -> "optuna.Study":
    """Convert a record to an in-memory optuna study."""
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
    """Load the search under `outputs/<name>` as an optuna study, for optuna's plots and tools.

    Raises:
        TrialsError: if there is no search.
    """
    record = read_trials(Path(folder))
    if record is None:
        raise TrialsError(f"there is no search under {folder}")
    return as_study(record)


def importances(record: Trials) -> Mapping[str, float]:
    """The fraction of the loss's variance over the space that each key explains; empty if too few trials have finished.

    The fractions sum to 1. The method is fANOVA: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing
    Hyperparameter Importance, 2014.
    """
    if len(record.finished) < IMPORTANCE_FROM or len({one.loss for one in record.finished}) < 2:
        return {}
    import optuna

    study = as_study(record)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(fraction) for key, fraction in found.items()}


def distribution(parameter: Choice | Number) -> "optuna.distributions.BaseDistribution":
    from optuna import distributions

    if isinstance(parameter, Choice):
        return distributions.CategoricalDistribution(parameter.choices)
    if parameter.whole:
        step = int(parameter.step or 1)
        return distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def weighs_what_it_searches(record: Trials) -> bool:
    """Whether the meaning of the search's metric depends on a searched key.

    The number of latent dimensions is one, unless `objective.sigma` is fixed: σ changes with it under `mse_kl`.
    """
    keys = {bare(key) for key in record.space}
    sections = ["objective", "likelihood"]
    if not any(word.startswith("objective.sigma=") for word in record.fixed):
        sections.append("latent")
    return record.metric == "val.total" and any(key.startswith(tuple(sections)) for key in keys)
