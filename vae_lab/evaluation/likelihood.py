"""How well a model explains unseen images, in nats per image, under its own likelihood."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vae_lab.data.batches import images_of
from vae_lab.evaluation.batches import exact, generator_for, in_double
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE

LEVEL_BITS = 8
"""Bits per grey level: the density of a real-valued likelihood is treated as constant within each of 256 levels."""


def importance_weighted(
    vae: VAE, images: Float[Tensor, "b c h w"], counts: Sequence[int], generator: torch.Generator
) -> dict[int, Float64[Tensor, " b"]]:
    """Importance-weighted bounds of each image in nats, by their number of samples k (Burda et al. 2016).

    log (1/k) Σᵢ p(x, zᵢ) / q(zᵢ|x), zᵢ ~ q(z|x). k = 1 is the evidence lower bound. All bounds share the samples of the
    largest one; a smaller k splits them into groups and averages over the groups. One sample is held at a time, so that
    memory does not grow with k. Densities are computed in 64 bits.
    """
    densities = exact(vae)
    parameters = vae.encoder(images)
    posterior, exact_posterior = vae.posterior(parameters), densities.posterior(in_double(parameters))
    prior, pixels = densities.prior(), in_double(images)
    sums = {k: pixels.new_zeros(len(images)) for k in counts}
    running = {k: torch.full_like(sums[k], -math.inf) for k in counts}
    for sample in range(1, max(counts) + 1):
        with drawn_from(generator):
            z = posterior.sample()
        weight = (
            densities.likelihood(in_double(vae.decoder(z))).log_prob(pixels)
            + prior.log_prob(in_double(z))
            - exact_posterior.log_prob(in_double(z))
        )
        for k in counts:
            running[k] = torch.logaddexp(running[k], weight)
            if sample % k == 0:
                sums[k] += running[k] - math.log(k)
                running[k] = torch.full_like(running[k], -math.inf)
    return {k: sums[k] / (max(counts) // k) for k in counts}


def bounds(vae: VAE, test: Iterable[Any], counts: Sequence[int]) -> dict[str, float | None]:
    """The mean bounds of a data set as `iwae_<k>`, and `bits_per_dim`, computed from the bound of 100 samples."""
    generator = generator_for("iwae")
    found: dict[int, list[Tensor]] = {k: [] for k in counts}
    pixels = 0
    for batch in test:
        images = images_of(batch)
        pixels = images[0].numel()
        for k, bound in importance_weighted(vae, images, counts, generator).items():
            found[k].append(bound)
    figures: dict[str, float | None] = {f"iwae_{k}": torch.cat(bounds).mean().item() for k, bounds in found.items()}
    if 100 in found:
        offset = LEVEL_BITS if vae.likelihood.data == "real" else 0  # other likelihoods are masses, not densities
        figures["bits_per_dim"] = offset - float(figures["iwae_100"] or 0) / (pixels * math.log(2))
    return figures
