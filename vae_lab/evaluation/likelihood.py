"""How well a model explains unseen images, in nats.

Figures are those of the Gaussian likelihood that β stands for, N(x̂, σ²·1) with σ² = β·D / (2·Z), its constant included.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vae_lab.data.batches import images_of
from vae_lab.evaluation.batches import generator_for, in_double, standard_noise
from vae_lab.model.latent import Posterior
from vae_lab.model.vae import VAE


def elbo(losses: Mapping[str, float], variance: float, pixels: int, latent_dim: int) -> float:
    """The evidence lower bound in nats an image that the mean losses of a data set amount to (Kingma & Welling 2014).

    E[log p(x|z)] − KL(q(z|x) ‖ p(z)), one z an image: −(D/2)·(reconstruction/σ² + ln 2πσ²) − Z·kl.

    Args:
        losses: `reconstruction` (mean squared error) and `kl` (nats a latent dimension).
        variance: σ² of the Gaussian likelihood.
        pixels: D, channels times height times width.
        latent_dim: Z.
    """
    expected = -0.5 * pixels * (losses["reconstruction"] / variance + math.log(2 * math.pi * variance))
    return expected - latent_dim * losses["kl"]


def log_likelihood(
    images: Float[Tensor, "b c h w"], means: Float[Tensor, "b c h w"], variance: float
) -> Float64[Tensor, " b"]:
    """Log N(x; x̂, σ²·1) of each image in nats."""
    squared = in_double(images - means).square().flatten(1).sum(1)
    return -0.5 * (squared / variance + images[0].numel() * math.log(2 * math.pi * variance))


def importance_weighted(
    vae: VAE,
    images: Float[Tensor, "b c h w"],
    variance: float,
    counts: Sequence[int],
    generator: torch.Generator,
) -> dict[int, Float64[Tensor, " b"]]:
    """Importance-weighted bounds of each image in nats, by their number of samples k (Burda et al. 2016).

    log (1/k) Σᵢ p(x, zᵢ) / q(zᵢ|x), zᵢ ~ q(z|x). k = 1 is the evidence lower bound. All bounds share the samples of the
    largest one; a smaller k takes them in groups and averages over these. One sample is held at a time, so that memory
    does not grow with k.
    """
    latent = vae.latent
    posterior = latent.posterior(vae.encoder(images))
    exact = Posterior(*map(in_double, posterior))
    sums = {k: exact.mean.new_zeros(len(images)) for k in counts}
    running = {k: torch.full_like(sums[k], -math.inf) for k in counts}
    for sample in range(1, max(counts) + 1):
        z = latent.sample(posterior, standard_noise(len(images), latent.dim, generator).to(images.device))
        weight = (
            log_likelihood(images, vae.decoder(z), variance)
            + latent.log_prior(in_double(z))
            - latent.log_posterior(exact, in_double(z))
        )
        for k in counts:
            running[k] = torch.logaddexp(running[k], weight)
            if sample % k == 0:
                sums[k] += running[k] - math.log(k)
                running[k] = torch.full_like(running[k], -math.inf)
    return {k: sums[k] / (max(counts) // k) for k in counts}


def bounds(
    vae: VAE, test: Iterable[Any], variance: float, counts: Sequence[int], pixels: int
) -> dict[str, float | None]:
    generator = generator_for("iwae")
    found: dict[int, list[Tensor]] = {k: [] for k in counts}
    for batch in test:
        for k, bound in importance_weighted(vae, images_of(batch), variance, counts, generator).items():
            found[k].append(bound)
    figures: dict[str, float | None] = {f"iwae_{k}": torch.cat(bounds).mean().item() for k, bounds in found.items()}
    if 100 in found:
        figures["bits_per_dim"] = 8 - float(figures["iwae_100"] or 0) / (pixels * math.log(2))
    return figures
