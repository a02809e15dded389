"""`objective=elbo`: the evidence lower bound in nats."""

from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from vae_lab.config.base import NonNegative
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective


class Elbo(Objective):
    """The negative evidence lower bound, −E log p(x | z) + β · KL(q(z | x) ‖ p(z)) (Kingma & Welling 2014).

    Both terms are sums over pixels or dimensions, averaged over images, with one z per image. β = 1 is the bound;
    other values weight the KL divergence (Higgins et al. 2017).

    Args:
        beta: weight of the KL term.
    """

    units: ClassVar[Mapping[str, str]] = {
        "total": "nats per image",
        "reconstruction": "nats per image",
        "kl": "nats per image",
    }
    is_likelihood_trained = True

    def __init__(self, *, beta: NonNegative = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        q, z, x = vae(images)
        reconstruction = -x.log_prob(images).mean()
        kl = vae.divergence(q, z).nats.mean()
        return {"total": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−reconstruction − kl, for every β."""
        return -terms["reconstruction"] - terms["kl"]
