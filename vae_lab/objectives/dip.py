"""`objective=dip`: the evidence lower bound with a penalty on the covariance of the codes."""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config.base import NonNegative
from vae_lab.model.blocks.layers import in_32_bits
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective, bound_of, posteriors_of


class Dip(Objective):
    """−E log p(x | z) + β · KL + λₒ · Σᵢ≠ⱼ Cᵢⱼ² + λ_d · Σᵢ (Cᵢᵢ − 1)² (Kumar et al. 2018).

    C is the covariance over the images of a batch: of the posterior means (`type=i`), or of the codes z, which is the
    covariance of the means plus the mean of the posteriors' covariances (`type=ii`). `off_diagonal` and `diagonal` are
    the two sums of squares.

    Args:
        type: `i` or `ii`.
        off_diagonal: λₒ.
        diagonal: λ_d; the paper takes 10 · λₒ for type i, and λₒ for type ii.
        beta: weight of the KL term.
    """

    units: Mapping[str, str] = {
        "total": "nats per image",
        "reconstruction": "nats per image",
        "kl": "nats per image",
        "off_diagonal": "squared covariance",
        "diagonal": "squared covariance",
    }
    is_likelihood_trained = True
    needs_whole_batch = True

    def __init__(
        self,
        *,
        type: Literal["i", "ii"] = "ii",
        off_diagonal: NonNegative = 10.0,
        diagonal: NonNegative = 10.0,
        beta: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.kind = type  # modules have a method `type`
        self.off_diagonal = off_diagonal
        self.diagonal = diagonal
        self.beta = beta

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        q, z, x = vae(images)
        reconstruction = -x.log_prob(images).mean()
        kl = vae.divergence(q, z).nats.mean()
        covariance = covariance_of_means(q)
        if self.kind == "ii":
            covariance = covariance + mean_covariance(q)
        variances = covariance.diagonal()
        diagonal = (variances - 1).square().sum()
        off_diagonal = covariance.square().sum() - variances.square().sum()
        total = reconstruction + self.beta * kl + self.off_diagonal * off_diagonal + self.diagonal * diagonal
        return {
            "total": total,
            "reconstruction": reconstruction,
            "kl": kl,
            "off_diagonal": off_diagonal,
            "diagonal": diagonal,
        }

    def check(self, vae: VAE) -> None:
        """Type ii needs the covariance of the posteriors."""
        try:
            mean_covariance(posteriors_of(vae))
        except (NotImplementedError, AttributeError):
            if self.kind == "ii":
                raise ValueError(
                    f"type=ii needs the variance of the posteriors, which {type(vae.posterior).__name__} does not "
                    "have; take type=i, or posterior=diagonal"
                ) from None

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−reconstruction − kl, for every weight."""
        return bound_of(terms)


def covariance_of_means(q: Distribution) -> Float[Tensor, "z z"]:
    """The covariance of the posterior means over a batch."""
    means = q.mean.flatten(1)
    centred = means - means.mean(0)
    with in_32_bits(means.device):
        return centred.T @ centred / len(centred)


def mean_covariance(q: Distribution) -> Float[Tensor, "z z"]:
    """The mean over a batch of the posteriors' covariances; diagonal unless the distribution has a matrix."""
    matrix = getattr(q, "covariance_matrix", None)
    return q.variance.flatten(1).mean(0).diag() if matrix is None else matrix.mean(0)
