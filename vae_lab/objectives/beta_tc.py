"""`objective=beta_tc`: the KL term in three parts, of which the total correlation is weighted."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_lab.config.base import Count, NonNegative
from vae_lab.model.distributions import DiagonalNormal, StandardNormal, divergence
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective, bound_of, posteriors_of


class BetaTc(Objective):
    """−E log p(x | z) + α · information + β · total correlation + γ · KL of single dimensions (Chen et al. 2018).

    With q(z) the mean of the posteriors over the training images, the KL divergence is the sum of the three:

    - `mutual_information`, E log q(z | x) / q(z)
    - `total_correlation`, E log q(z) / Πⱼ q(zⱼ): 0 if the dimensions are independent
    - `dimension_wise_kl`, E log Πⱼ q(zⱼ) / p(zⱼ)

    All are in nats per image and estimated from the z of a batch; `kl` is exact where it has a closed form.

    Args:
        beta: weight of the total correlation.
        alpha: weight of the mutual information.
        gamma: weight of the KL divergence of single dimensions.
        num_train: N, the number of training images.
        sampling: how q(z) is estimated from a batch. `stratified` weights its images so that the mean over batches is
            q(z) itself; `weighted` has the same gradients up to that weighting, but q(z) / N for values.
    """

    units: Mapping[str, str] = {
        "total": "nats per image",
        "reconstruction": "nats per image",
        "kl": "nats per image",
        "mutual_information": "nats per image",
        "total_correlation": "nats per image",
        "dimension_wise_kl": "nats per image",
    }
    is_likelihood_trained = True
    needs_whole_batch = True

    def __init__(
        self,
        *,
        num_train: Count,
        beta: NonNegative = 6.0,
        alpha: NonNegative = 1.0,
        gamma: NonNegative = 1.0,
        sampling: Literal["stratified", "weighted"] = "stratified",
    ) -> None:
        super().__init__()
        self.num_train = num_train
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.sampling = sampling

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        q, z, x = vae(images)
        reconstruction = -x.log_prob(images).mean()
        prior = vae.prior()
        parts = decompose(q, prior, z, log_weights(len(z), self.num_train, self.sampling).to(z))
        total = reconstruction
        for weight, part in zip((self.alpha, self.beta, self.gamma), parts, strict=True):
            total = total + weight * part
        return {
            "total": total,
            "reconstruction": reconstruction,
            "kl": divergence(q, prior, z).nats.mean(),
            **parts._asdict(),
        }

    def check(self, vae: VAE) -> None:
        """Posterior and prior must be products over the latent dimensions."""
        for part, found in (("posterior", posteriors_of(vae)), ("prior", vae.prior())):
            if factors(found) is None:
                default = {"posterior": "diagonal", "prior": "standard"}[part]
                raise ValueError(
                    f"beta_tc needs a {part} that is a product over the latent dimensions, but "
                    f"{type(getattr(vae, part)).__name__} is none; take {part}={default}, or objective=mmd or elbo"
                )

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−reconstruction − kl, for every weight."""
        return bound_of(terms)


class Decomposition(NamedTuple):
    """The three parts of the KL divergence, in nats."""

    mutual_information: Float[Tensor, ""]
    total_correlation: Float[Tensor, ""]
    dimension_wise_kl: Float[Tensor, ""]


def decompose(
    q: Distribution, p: Distribution, z: Float[Tensor, "b ..."], weights: Float[Tensor, "b b"]
) -> Decomposition:
    """Estimate the parts of the KL divergence from one z of each posterior.

    Args:
        q: the posteriors of a batch, products over the latent dimensions.
        p: the prior.
        z: one sample of each posterior.
        weights: logarithms of the weights of the posteriors j in q(zᵢ) = Σⱼ wᵢⱼ q(zᵢ | xⱼ).
    """
    dimensions = factors(q)
    assert dimensions is not None, "see `check`"
    pairs = dimensions.log_prob(z.unsqueeze(1)).flatten(2)  # (i, j, dimension): log q(zᵢ | xⱼ) of each dimension
    log_q = (weights + pairs.sum(2)).logsumexp(1)
    log_product = (weights.unsqueeze(2) + pairs).logsumexp(1).sum(1)
    return Decomposition(
        (pairs.diagonal().sum(0) - log_q).mean(),
        (log_q - log_product).mean(),
        (log_product - p.log_prob(z)).mean(),
    )


def log_weights(batch: int, num_train: int, sampling: Literal["stratified", "weighted"]) -> Float[Tensor, "b b"]:
    """The logarithm of each posterior's weight in the estimate of q(z) (Chen et al. 2018, appendix C).

    Stratified: an image's own posterior weighs 1/N, as in q(z); the other N − 1 are represented by the others of the
    batch. In a batch of the whole training set each weighs 1/N.
    """
    count = max(num_train, batch)  # validation may have larger batches than there are training images
    if sampling == "weighted":
        return torch.full((batch, batch), -math.log(count * batch))
    others = max(1, batch - 1)
    weights = torch.full((batch, batch), (count - 1) / count / others)
    weights.fill_diagonal_(1 / count if batch > 1 else 1.0)
    return weights.log()


def factors(distribution: Distribution) -> Distribution | None:
    """The distributions of single latent dimensions, as a batch of numbers; None if it is no product of them."""
    if isinstance(distribution, DiagonalNormal):
        return Normal(distribution.mean, torch.exp(0.5 * distribution.log_variance), validate_args=False)
    if isinstance(distribution, StandardNormal):
        return Normal(distribution.mean, torch.ones_like(distribution.mean), validate_args=False)
    if isinstance(distribution, Independent) and not distribution.base_dist.event_shape:
        base: Distribution = distribution.base_dist
        return base
    return None
