"""`objective=mmd`: the codes of a batch as a whole are held against draws of the prior, as in InfoVAE and WAE."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.config.base import NonNegative, Positive
from vae_lab.model.distributions import divergence
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective, bound_of

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Of the IMQ kernel, whose mean over them is taken (Tolstikhin et al. 2018)."""


class Mmd(Objective):
    """−E log p(x | z) + β · KL(q(z | x) ‖ p(z)) + λ · MMD²(q(z), p(z)), q(z) being the codes of all images together.

    β = 0 is a Wasserstein autoencoder (Tolstikhin et al. 2018), also for `posterior=point`, which has no KL divergence.
    InfoVAE (Zhao et al. 2019) calls the weights 1 − α and α + λ − 1.

    `mmd` is the unbiased estimate from the z of a batch and as many draws of the prior: around 0, and as often below as
    above it, if the two distributions are the same.

    Args:
        beta: weight of the KL term.
        mmd_weight: weight of the MMD.
        kernel: `imq`, the mean of s·C / (s·C + d²) over seven s; `rbf`, exp(−d² / C); d is the distance of two codes.
        bandwidth: C; None is twice the number of latent dimensions: the mean of d² for two draws from N(0, I).
    """

    units: Mapping[str, str] = {
        "total": "nats per image",
        "reconstruction": "nats per image",
        "kl": "nats per image",
        "mmd": "squared MMD",
    }
    needs_density = False
    is_likelihood_trained = True
    needs_whole_batch = True

    def __init__(
        self,
        *,
        beta: NonNegative = 0.0,
        mmd_weight: NonNegative = 1000.0,
        kernel: Literal["imq", "rbf"] = "imq",
        bandwidth: Positive | None = None,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.mmd_weight = mmd_weight
        self.kernel = kernel
        self.bandwidth = bandwidth

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        q, z, x = vae(images)
        reconstruction = -x.log_prob(images).mean()
        prior = vae.prior()
        draws = prior.rsample((len(z),)) if prior.has_rsample else prior.sample((len(z),))
        bandwidth = self.bandwidth or 2.0 * math.prod(vae.latent_shape)
        mmd = squared_mmd(z.flatten(1), draws.flatten(1), self.kernel, bandwidth)
        total = reconstruction + self.mmd_weight * mmd
        terms = {"reconstruction": reconstruction, "mmd": mmd}
        if vae.posterior.has_density:
            terms["kl"] = divergence(q, prior, z).nats.mean()
            total = total + self.beta * terms["kl"]
        return {"total": total, **terms}

    def check(self, vae: VAE) -> None:
        """Without a KL term the prior must be one that draws can train, or one without weights."""
        if self.beta and not vae.posterior.has_density:
            raise ValueError(
                f"beta is {self.beta}, but {type(vae.posterior).__name__} has no KL divergence; take objective.beta=0, "
                "or posterior=diagonal"
            )
        if not self.beta and not vae.prior().has_rsample and any(True for _ in vae.prior.parameters()):
            raise ValueError(
                f"beta is 0, so that nothing trains {type(vae.prior).__name__}, whose draws have no gradient; take "
                "prior=standard, or objective.beta=1"
            )

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−reconstruction − kl, for every weight."""
        return bound_of(terms)


def squared_mmd(
    a: Float[Tensor, "m z"], b: Float[Tensor, "n z"], kernel: Literal["imq", "rbf"], bandwidth: float
) -> Float[Tensor, ""]:
    """The unbiased estimate of the squared maximum mean discrepancy of two samples (Gretton et al. 2012, eq. 3)."""
    within = [_mean_of_pairs(_kernel(one, one, kernel, bandwidth)) for one in (a, b)]
    return within[0] + within[1] - 2 * _kernel(a, b, kernel, bandwidth).mean()


def _mean_of_pairs(values: Float[Tensor, "m m"]) -> Float[Tensor, ""]:
    """The mean over pairs of different rows; of a single row, the value of the pair with itself."""
    count = len(values)
    return values.mean() if count < 2 else (values.sum() - values.diagonal().sum()) / (count * (count - 1))


def _kernel(
    a: Float[Tensor, "m z"], b: Float[Tensor, "n z"], kernel: Literal["imq", "rbf"], bandwidth: float
) -> Float[Tensor, "m n"]:
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    if kernel == "rbf":
        return torch.exp(-distances / bandwidth)
    return sum(((s * bandwidth) / (s * bandwidth + distances) for s in SCALES), torch.zeros_like(distances)) / len(
        SCALES
    )
