"""Warnings about problems of a trained model."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vae_lab.evaluation.latent_space import ACTIVE, BOUNDED, MOST_VALUES
from vae_lab.model.samplers import MOST_FITTED
from vae_lab.results.figures import NATS_PER_DIMENSION

MOST_KL = 10.0
"""Nats per latent dimension, on average, above which the KL divergence is reported as exploding.

A dimension with 10 nats is resolved to one part in 20,000: no decoder needs that.
"""


MANY_SAMPLES, LEAST_EFFECTIVE = 10, 2.0
"""With at least so many samples a bound is called loose if fewer of them count."""

LEAST_USED = 0.1
"""The share of a codebook that the test images should use."""


def kl_divisor(units: Mapping[str, str], latent_dim: int) -> float:
    """The divisor that converts an objective's `kl` to nats per latent dimension."""
    return 1.0 if units.get("kl") == NATS_PER_DIMENSION else float(max(1, latent_dim))


def symptoms(figures: Mapping[str, Any], kl: Mapping[int, float], latent_dim: int) -> list[str]:
    """Problems of a model, as `kind: sentence`.

    Collapse of the posterior or of a codebook, dead dimensions or units, exploding KL, and figures that are too
    expensive at its size.

    Args:
        figures: the result of `measure`.
        kl: epoch → nats per latent dimension.
        latent_dim: the number of latent dimensions.
    """
    found = []
    active = figures.get("active_units")
    if active == 0:
        found.append(
            f"posterior collapse: none of the {latent_dim} latent dimensions is active, so the decoder ignores the "
            "image; a lower objective.beta or a weaker decoder may help"
        )
    elif active is not None and active < latent_dim:
        found.append(
            f"dead latent dimensions: the posterior means of {latent_dim - active} of {latent_dim} have a variance of "
            f"no more than {ACTIVE} over the test images"
        )
    if figures.get(BOUNDED[0], math.nan) is None:
        found.append(
            "not computed: the bounds of mutual information and of the aggregate KL divergence, since the codes of the "
            f"test images are more than {MOST_VALUES:,} numbers; a lower latent.dim or data.num_test is needed"
        )
    if latent_dim > MOST_FITTED and figures.get("fid_samples_gaussian", math.nan) is None:
        found.append(
            f"not computed: samplers fitted to codes of more than {MOST_FITTED:,} dimensions, since their time grows "
            "with the cube of latent.dim"
        )
    bounds = (re.fullmatch(r"iwae_(\d+)", name) for name in figures)
    most = max((int(bound[1]) for bound in bounds if bound), default=0)
    effective = figures.get("effective_samples")
    if effective is not None and most >= MANY_SAMPLES and effective < LEAST_EFFECTIVE:
        found.append(
            f"loose bound: of the {most:,} samples of iwae_{most} {effective:.1f} count on average, so that ln p(x) "
            "may be many nats higher; a larger metrics.iwae comes closer"
        )
    used = figures.get("codebook_used")
    if used is not None and used < LEAST_USED:
        found.append(
            f"codebook collapse: the test images use {100 * used:.2g} % of the codes; a smaller codebook, or "
            "posterior=fsq, may do as well"
        )
    if figures.get("dead_units"):
        found.append(
            f"dead units: {figures['dead_units']} channels have the same activation for every test image; another "
            "activation or a lower optimizer.lr may help"
        )
    if kl and max(kl.values()) > MOST_KL:
        found.append(exploding(*max(kl.items(), key=lambda one: one[1])))
    return found


def exploding(epoch: int, kl: float) -> str:
    """The warning about an epoch with an exploding KL divergence."""
    return (
        f"exploding KL: {kl:.4g} nats a latent dimension in epoch {epoch} (more than {MOST_KL:g}); a lower "
        "optimizer.lr or trainer.gradient_clip_val may help"
    )
