"""`objective=mse_kl`: squared error and KL divergence, both means, as in the published experiment."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from vae_lab.config.base import NonNegative, Positive
from vae_lab.model.distributions import by_dimension
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective, with_penalty


class MseKl(Objective):
    """Mean squared error plus β times the mean KL divergence (Higgins et al. 2017).

    `reconstruction` is the mean over images and pixels of (x̂ − x)², `kl` the mean over images and latent dimensions;
    total = reconstruction + β · kl. Up to a factor and a constant, this is the negative evidence lower bound under a
    Gaussian likelihood with σ² = β·D / (2·Z), for D pixels and Z latent dimensions. The penalty of a quantised
    posterior, divided by Z, is `commitment`, and has the weight β too.

    Args:
        beta: weight of the KL term.
        sigma: σ, from which a configuration computes β = 2·σ²·Z / D: whatever Z is, the total means the same. None
            leaves β as it is.
    """

    units: Mapping[str, str] = {
        "total": "squared error per pixel",
        "reconstruction": "squared error per pixel",
        "kl": "nats per latent dimension",
    }
    only_likelihood = "GaussianLikelihood"
    beta_sets_sigma = True
    penalty_unit = "per latent dimension"
    is_likelihood_trained = True

    def __init__(self, *, beta: NonNegative, sigma: Positive | None = None) -> None:
        super().__init__()
        self.beta, self.sigma = beta, sigma

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        q, z, x = vae(images)
        reconstruction = mse_loss(x.mean.to(images.dtype), images)
        dimensions = by_dimension(q, vae.prior())
        kl = vae.divergence(q, z).nats.mean() / vae.latent_dim if dimensions is None else dimensions.mean()
        terms = {"total": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}
        return with_penalty(terms, q, 1 / vae.latent_dim, self.beta)

    def per_image(self, vae: VAE, images: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, " b"]] | None:
        if vae.posterior.has_penalty:
            return None
        q, z, x = vae(images)
        reconstruction = (x.mean.to(images.dtype) - images).square().flatten(1).mean(1)
        kl = vae.divergence(q, z).nats / vae.latent_dim
        return {"total": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−(D/2)·(reconstruction/σ² + ln 2πσ²) − Z·kl."""
        if not self.beta or vae.image_shape is None:
            return None
        pixels, latent_dim = math.prod(vae.image_shape), math.prod(vae.latent_shape)
        variance = self.beta * pixels / (2 * latent_dim)
        expected = -0.5 * pixels * (terms["reconstruction"] / variance + math.log(2 * math.pi * variance))
        return expected - latent_dim * terms["kl"]

    def measures(self, vae: VAE) -> bool:
        """True unless β is 0: without a KL term there is no σ."""
        return self.beta > 0
