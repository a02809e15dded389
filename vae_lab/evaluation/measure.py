"""Test metrics: likelihood of unseen images, use of the latent space, quality of images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from vae_lab import config
from vae_lab.config import Config, MetricsConfig
from vae_lab.data.batches import images_of
from vae_lab.evaluation.batches import NOISE_SEED, Codes, HeldOutBatches, generator_for
from vae_lab.evaluation.latent_space import labelled_training_images, probe, training_codes, use_of_latent
from vae_lab.evaluation.likelihood import bounds, figures_of
from vae_lab.evaluation.pictures import Draw, reconstruct
from vae_lab.model.classifier import load_classifier
from vae_lab.model.randomness import drawn_from
from vae_lab.model.samplers import KINDS, MOST_FITTED, fit_codes, least_codes, posterior_samples
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective

MOST_CODES = 10_000
"""Samplers are fitted to the codes of the first training images, at most these: more take time and change little."""


class Measured(NamedTuple):
    """The test metrics of a model."""

    figures: dict[str, Any]
    images: dict[str, np.ndarray]
    """Figures that are means over the test images → their value for each image."""


def measure(
    vae: VAE,
    objective: Objective | None,
    data: LightningDataModule,
    settings: Config,
    asked: MetricsConfig,
    losses: Mapping[str, float],
    folder: Path | None = None,
) -> Measured:
    """Compute the test metrics of a trained model, named as in `result.json`; None if one cannot be computed.

    The model runs in evaluation mode, in 32 bits, on its current device. Its mode is restored afterwards.

    Args:
        vae: the model.
        objective: its training objective, which decides whether it is measured in nats; None if unknown.
        data: gives the test images by `test_dataloader`, and training images and labels for probe and samplers.
        settings: the run's configuration.
        asked: the metrics to compute.
        losses: the objective's terms on the test images.
        folder: of the run, which keeps what has been computed if a long evaluation is interrupted.
    """
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad():
            return _measure(vae, objective, data, settings, asked, losses, folder)
    finally:
        vae.train(training)


def _measure(
    vae: VAE,
    objective: Objective | None,
    data: LightningDataModule,
    settings: Config,
    asked: MetricsConfig,
    losses: Mapping[str, float],
    folder: Path | None,
) -> Measured:
    like = next(vae.parameters(), torch.empty(0))
    limit = (settings.trainer.model_extra or {}).get("limit_test_batches")
    test = HeldOutBatches(data, data.test_dataloader(), like, limit)
    classifier = load_classifier().to(like.device) if asked.frechet and settings.is_fashion_mnist else None
    figures: dict[str, Any] = {}
    images = _terms(vae, objective, test)
    in_nats = objective is not None and objective.measures(vae)
    if objective is not None and in_nats:
        elbo = objective.elbo(losses, vae)
        if elbo is None:
            images["elbo"] = torch.tensor(bounds(vae, test, [1])["iwae_1"])
        elif images:
            terms = zip(*(values.tolist() for values in images.values()), strict=True)
            images["elbo"] = torch.tensor([objective.elbo(dict(zip(images, one, strict=True)), vae) for one in terms])
        figures["elbo"] = images["elbo"].mean().item() if elbo is None else elbo
    with_samplers = asked.samplers and classifier is not None
    if with_samplers and (vae.latent_dim > MOST_FITTED or vae.posterior.is_quantized):
        with_samplers = False
        figures |= dict.fromkeys(f"fid_samples_{kind}" for kind in KINDS)
    train = training_codes(vae, data, like) if asked.probe or with_samplers else None
    draws = _draws(vae, train if with_samplers else None) if classifier else {}
    others = HeldOutBatches(data, labelled_training_images(data), like) if classifier is not None else ()
    found = reconstruct(vae, test, classifier, draws, others)
    figures |= found.figures
    images["mse"] = found.squared_errors
    figures |= use_of_latent(vae, found.codes.parameters)
    if in_nats and asked.iwae:
        of_bounds = bounds(vae, test, asked.iwae, folder)
        figures |= figures_of(of_bounds, math.prod(settings.data.image_shape))
        images |= {name: torch.tensor(values) for name, values in of_bounds.items() if name.startswith("iwae")}
    if asked.probe and train is not None:
        figures["probe_accuracy"] = probe(train, found.codes)
    for name, node in asked.further.items():
        value = config.build(node.call())(vae, (images_of(batch) for batch in test))
        figures[name] = None if value is None else float(value)
    return Measured(figures, {name: values.float().cpu().numpy() for name, values in images.items()})


def _terms(vae: VAE, objective: Objective | None, test: HeldOutBatches) -> dict[str, Tensor]:
    """The objective's terms of each test image, by the same noise as in the test; empty if it has none."""
    found: dict[str, list[Tensor]] = {}
    if objective is None or _home(objective, "per_image") is not _home(objective, "forward"):
        return {}  # a subclass whose terms are others
    noise = torch.Generator().manual_seed(NOISE_SEED)
    for batch in test:
        with drawn_from(noise):
            terms = objective.per_image(vae, images_of(batch))
        if terms is None:
            return {}
        for name, values in terms.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _home(objective: Objective, method: str) -> type:
    """The class that defines a method."""
    return next(kind for kind in type(objective).__mro__ if method in vars(kind))


def kind_of_divergence(vae: VAE) -> Literal["exact", "estimated"] | None:
    """How the KL divergence of a model's posterior from its prior is computed; None if it does not exist."""
    if not vae.posterior.has_density:
        return None
    with torch.no_grad():
        parameters = torch.zeros(1, vae.posterior.num_parameters(vae.latent_shape)).to(next(vae.parameters()))
        q = vae.posterior(parameters)
        return "exact" if vae.divergence(q, q.sample()).is_exact else "estimated"


def _draws(vae: VAE, train: Codes | None) -> dict[str, Draw]:
    """The sources of z for sampled images: the prior, and the samplers that are fitted to the training codes."""
    draws: dict[str, Draw] = {"samples": vae.draw}
    if train is not None:
        codes = posterior_samples(vae.posterior(train.parameters[:MOST_CODES]), generator_for("samplers")).flatten(1)
        if len(codes) >= least_codes() and codes.isfinite().all():
            draws |= {f"samples_{kind}": fit_codes(codes, kind).draw for kind in KINDS}
    return draws
