"""Checks of a model's parts and its objective, on the meta device, before the first run starts."""

import pkgutil
from typing import get_args

import torch
from torch import Tensor

from vae_lab import config
from vae_lab.config import Config, ConfigError, Problem
from vae_lab.model import vae
from vae_lab.model.interfaces import DataKind, Posterior
from vae_lab.model.vae import VAE, Output
from vae_lab.objectives.base import Objective
from vae_lab.results.figures import OF_TEST

TERMS = ("total", "reconstruction", "kl")
"""The terms that every objective has; without a density of the posterior there is no `kl`."""
TAKEN = (*OF_TEST, "epoch", "split", "seconds")
"""Names of figures and columns, which no term may have."""


def check(settings: Config) -> None:
    """Check that the parts of a model fit each other, the images and the objective; call it inside `shapes_only`.

    Raises:
        ConfigError: with the first problem.
    """
    model = vae.build(settings)
    images = torch.empty(2, *settings.data.image_shape)
    _check_quantized(settings, model)
    _check_shapes(model, model(images))
    _check_likelihood(settings, model)
    try:
        objective = _objective(settings, model)
        _check_density(settings, model, objective)
        objective.check(model)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(Problem("objective", str(error))) from error
    terms = objective(model, images, 0.0)
    _check_terms(objective, settings.objective.target, terms, model.posterior)
    check_metrics(settings)


def terms(settings: Config) -> list[str]:
    """The terms of a run's objective; their names may depend on its keys, and `kl` on the posterior."""
    posterior = pkgutil.resolve_name(settings.posterior.target)
    units = config.build(settings.objective).units_for(posterior)
    return [term for term in units if term != "kl" or posterior.has_density]


def check_metrics(settings: Config) -> None:
    """Check that a user's test metric does not have the name of another figure.

    Raises:
        ConfigError: if one does.
    """
    units = config.build(settings.objective).units
    for name in settings.metrics.further:
        if name in (*OF_TEST, *units):
            problem = "is the name of another figure of the test; choose another one"
            raise ConfigError(Problem(f"metrics.further.{name}", problem))


def _check_shapes(model: VAE, output: Output) -> None:
    """The distributions must be over whole codes and whole images; `Independent` makes them so."""
    images = model.image_shape or ()
    for part, found, batch, event in (
        ("posterior", output.posterior, (2,), model.latent_shape),
        ("prior", model.prior(), (), model.latent_shape),
        ("likelihood", output.likelihood, (2,), images),
    ):
        if (tuple(found.batch_shape), tuple(found.event_shape)) != (batch, event):
            raise ConfigError(
                Problem(
                    part,
                    f"must give distributions of batch shape {batch} and event shape {event}, but those of "
                    f"{type(getattr(model, part)).__name__} have {tuple(found.batch_shape)} and "
                    f"{tuple(found.event_shape)}; torch.distributions.Independent makes dimensions events",
                )
            )


def _check_quantized(settings: Config, model: VAE) -> None:
    """As before torch was imported, also for a user's classes."""
    for problem in config.quantized_problems(
        (settings.posterior.target, model.posterior.is_quantized),
        (settings.prior.target, model.prior.is_quantized),
        (settings.objective.target, getattr(pkgutil.resolve_name(settings.objective.target), "penalty_unit", None)),
    ):
        raise ConfigError(problem)


def _check_likelihood(settings: Config, model: VAE) -> None:
    name, kind = settings.likelihood.target, getattr(type(model.likelihood), "data", None)
    if kind not in get_args(DataKind):
        known = ", ".join(map(repr, get_args(DataKind)))
        raise ConfigError(
            Problem("likelihood", f"{name} must say which images it is for: data is {kind!r}, not {known}")
        )
    if kind == "binary" and getattr(settings.data, "binarize", None) == "none":
        raise ConfigError(config.not_binary(name))


def _objective(settings: Config, model: VAE) -> Objective:
    objective, name = config.build(settings.objective), settings.objective.target
    if not isinstance(objective, Objective):
        kind = type(objective).__name__
        raise ConfigError(Problem("objective", f"must be a vae_lab.Objective, but {name} makes a {kind}: subclass it"))
    if not objective.units:
        meaning = "the unit of each term, such as {'total': 'nats per image'}"
        raise ConfigError(Problem("objective", f"{name} does not declare `units`: {meaning}"))
    if objective.is_likelihood_trained is None:
        meaning = "whether its models are measured in nats under the model's likelihood"
        raise ConfigError(Problem("objective", f"{name} does not declare `is_likelihood_trained`: {meaning}"))
    if any(True for _ in objective.parameters()):
        problem = f"{name} has weights of its own, which no file keeps: let them be part of a prior or likelihood"
        raise ConfigError(Problem("objective", problem))
    only, likelihood = objective.only_likelihood, type(model.likelihood).__name__
    if only is not None and likelihood != only:
        raise ConfigError(Problem("likelihood", f"must be {only} for the objective {name}, but is {likelihood}"))
    return objective


def _check_density(settings: Config, model: VAE, objective: Objective) -> None:
    if model.posterior.has_density:
        return
    if objective.needs_density:
        raise ConfigError(config.no_density(settings.posterior.target, settings.objective.target))
    if any(True for _ in model.prior.parameters()):
        problem = f"{settings.prior.target} is trained by a KL divergence, which {settings.posterior.target} lacks"
        raise ConfigError(Problem("prior", f"{problem}; take prior=standard or posterior=diagonal"))


def _check_terms(objective: Objective, name: str, terms: dict[str, Tensor], posterior: Posterior) -> None:
    has_density, units = posterior.has_density, objective.units_for(posterior)
    required = TERMS if has_density else [term for term in TERMS if term != "kl"]
    missing = [term for term in required if term not in terms]
    if missing:
        raise ConfigError(
            Problem("objective", f"must return {', '.join(required)}, but {name} returns no {missing[0]}")
        )
    bare = [term for term in terms if not units.get(term)]
    if bare:
        problem = f"{name} returns the term {bare[0]!r} without a unit: add it to its `units`, such as 'nats per image'"
        raise ConfigError(Problem("objective", problem))
    absent = [term for term in units if term not in terms and (has_density or term != "kl")]
    if absent:
        problem = f"{name} declares a unit for {absent[0]!r}, but does not return it: every step returns every term"
        raise ConfigError(Problem("objective", problem))
    taken = [term for term in terms if term in TAKEN]
    if taken:
        problem = f"{name} returns the term {taken[0]!r}, which is the name of another figure; choose another one"
        raise ConfigError(Problem("objective", problem))
    odd = [term for term in terms if not isinstance(terms[term], Tensor) or terms[term].dim()]
    if odd:
        raise ConfigError(Problem("objective", f"{name} must return one number for {odd[0]!r}, a mean over the images"))
