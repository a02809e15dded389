"""Held-out quality: how well a model explains unseen images, what it keeps in its latent space, how its images look."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from vae_lab.config import Config, MetricsConfig
from vae_lab.features import fits, load_classifier
from vae_lab.latent import Gaussian
from vae_lab.metrics.batches import HeldOutBatches, labels_of
from vae_lab.metrics.latent_space import aggregate_bounds, probe, probe_accuracy, use_of_latent
from vae_lab.metrics.likelihood import bounds, elbo, importance_weighted, log_likelihood
from vae_lab.metrics.pictures import ConstantChannels, FrechetDistance, reconstruct
from vae_lab.metrics.symptoms import MOST_KL, exploding, symptoms
from vae_lab.vae import VAE

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
        data: gives the test images by `test_dataloader`, for the probe also training images and labels.
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
    codes, pictures = reconstruct(vae, test, classifier)
    figures |= pictures
    if codes.posterior is not None:
        figures |= use_of_latent(vae.latent, codes.posterior)
    if variance is not None and asked.iwae and isinstance(vae.latent, Gaussian):
        figures |= bounds(vae, test, variance, asked.iwae, math.prod(settings.data.image_shape))
    if asked.probe and codes.labels is not None:
        figures["probe_accuracy"] = probe(vae, data, place, codes)
    return figures
