"""Held-out quality: how well a model explains unseen images, what it keeps in its latent space, how its images look."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from vae_lab.config import Config, MetricsConfig
from vae_lab.data.batches import labels_of
from vae_lab.evaluation.batches import Codes, HeldOutBatches, generator_for
from vae_lab.evaluation.classifier import fits, load_classifier
from vae_lab.evaluation.latent_space import aggregate_bounds, probe, probe_accuracy, training_codes, use_of_latent
from vae_lab.evaluation.likelihood import bounds, elbo, importance_weighted, log_likelihood
from vae_lab.evaluation.pictures import ConstantChannels, Draw, FrechetDistance, reconstruct
from vae_lab.evaluation.symptoms import MOST_KL, exploding, symptoms
from vae_lab.model.latent import Gaussian, Posterior
from vae_lab.model.samplers import KINDS, fit_codes, least_codes, posterior_samples
from vae_lab.model.vae import VAE

__all__ = [
    "MOST_KL",
    "ConstantChannels",
    "FrechetDistance",
    "aggregate_bounds",
    "elbo",
    "exploding",
    "importance_weighted",
    "labels_of",
    "log_likelihood",
    "measure",
    "probe_accuracy",
    "symptoms",
    "use_of_latent",
]

MOST_CODES = 10_000
"""Training images whose codes samplers are fitted to, the first of their files: more take time and change little."""


def measure(
    vae: VAE,
    data: LightningDataModule,
    settings: Config,
    asked: MetricsConfig,
    losses: Mapping[str, float],
) -> dict[str, Any]:
    """The test metrics of a trained model by the names that `result.json` has them under; None for what cannot be had.

    The model is used in evaluation mode, in 32 bits, on the device that it is on, and left in the mode it was in.

    Args:
        vae: the model.
        data: gives the test images by `test_dataloader`, for probe and samplers also training images and classes.
        settings: the run's configuration.
        asked: which metrics.
        losses: `reconstruction` and `kl` of the test.
    """
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad():
            return _measure(vae, data, settings, asked, losses)
    finally:
        vae.train(training)


def _measure(
    vae: VAE, data: LightningDataModule, settings: Config, asked: MetricsConfig, losses: Mapping[str, float]
) -> dict[str, Any]:
    place = next(vae.parameters(), torch.empty(0))
    limit = (settings.trainer.model_extra or {}).get("limit_test_batches")
    test = HeldOutBatches(data, data.test_dataloader(), place, limit)
    variance = settings.likelihood_variance
    classifier = load_classifier().to(place.device) if asked.frechet and fits(settings.data) else None
    figures: dict[str, Any] = {}
    if variance is not None:
        figures["elbo"] = elbo(losses, variance, math.prod(settings.data.image_shape), settings.latent_dim)
    with_samplers = asked.samplers and classifier is not None
    train = training_codes(vae, data, place) if asked.probe or with_samplers else None
    draws = _draws(vae, train if with_samplers else None) if classifier else {}
    codes, pictures = reconstruct(vae, test, classifier, draws)
    figures |= pictures
    if codes.posterior is not None:
        figures |= use_of_latent(vae.latent, codes.posterior)
    if variance is not None and asked.iwae and isinstance(vae.latent, Gaussian):
        figures |= bounds(vae, test, variance, asked.iwae, math.prod(settings.data.image_shape))
    if asked.probe and train is not None:
        figures["probe_accuracy"] = probe(train, codes)
    return figures


def _draws(vae: VAE, train: Codes | None) -> dict[str, Draw]:
    """Where the z of sampled images come from: the prior, and the samplers that are fitted to the training codes."""
    draws: dict[str, Draw] = {}
    if hasattr(vae.latent, "sample_prior"):
        draws["samples"] = vae.latent.sample_prior
    if train is not None and train.posterior is not None:
        posterior = Posterior(*(values[:MOST_CODES] for values in train.posterior))
        codes = posterior_samples(vae, posterior, generator_for("samplers"))
        if len(codes) >= least_codes() and codes.isfinite().all():
            draws |= {f"samples_{kind}": fit_codes(codes, kind).draw for kind in KINDS}
    return draws
