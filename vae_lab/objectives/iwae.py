"""`objective=iwae`: the importance-weighted bound of k samples."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.config.base import Count
from vae_lab.model.distributions import divergence
from vae_lab.model.interfaces import Posterior
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective, bound_of


class Iwae(Objective):
    """The negative importance-weighted bound, −ln (1/k) Σᵢ p(x, zᵢ) / q(zᵢ | x), zᵢ ~ q(z | x) (Burda et al. 2016).

    `total` is the mean over images. `reconstruction` and `kl` are those of the evidence lower bound, averaged over the
    k samples; their sum is at least `total` in expectation.

    Args:
        k: samples per image. The decoder's work is k times that of `elbo`.
        estimator: `iwae`, the gradient of the bound; `dreg`, the doubly reparameterised one, which has the same
            expectation and a lower variance (Tucker et al. 2019).
    """

    units: Mapping[str, str] = {"total": "nats per image", "reconstruction": "nats per image", "kl": "nats per image"}
    is_likelihood_trained = True

    def __init__(self, *, k: Count = 8, estimator: Literal["iwae", "dreg"] = "dreg") -> None:
        super().__init__()
        self.k = k
        self.estimator = estimator

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        parameters = vae.encoder(images)
        q = vae.posterior(parameters)
        z = q.rsample((self.k,))
        x = vae.likelihood(vae.decoder(z.flatten(0, 1)))
        log_x = x.log_prob(images.repeat(self.k, 1, 1, 1)).unflatten(0, (self.k, len(images)))
        prior = vae.prior()
        log_joint = log_x + prior.log_prob(z)
        if self.estimator == "dreg" and z.requires_grad:
            total = _doubly_reparameterised(log_joint - _detached_log_density(vae.posterior, parameters, z), z)
        else:
            total = _negative_bound(log_joint - q.log_prob(z))
        with torch.no_grad():  # not part of the total
            reconstruction, kl = -log_x.mean(), divergence(q, prior, z).nats.mean()
        return {"total": total, "reconstruction": reconstruction, "kl": kl}

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """−reconstruction − kl: the bound of one sample."""
        return bound_of(terms)


def _negative_bound(log_weights: Float[Tensor, "k b"]) -> Float[Tensor, ""]:
    return (math.log(len(log_weights)) - log_weights.logsumexp(0)).mean()


def _doubly_reparameterised(log_weights: Float[Tensor, "k b"], z: Float[Tensor, "k b ..."]) -> Float[Tensor, ""]:
    """The negative bound with the gradients of Tucker et al. 2019, eq. 8.

    With normalised weights w, all weights of p(x, z) get Σ w · ∇ log p(x, z), as in IWAE. The encoder gets its gradient
    through z alone, as Σ w² · ∇ log (p(x, z) / q(z | x)): z is part of a sum that is weighted by w already, and its own
    gradient is multiplied by w once more.

    Args:
        log_weights: log p(x, z) − log q(z | x), with q's parameters detached.
        z: the samples.
    """
    weights = log_weights.detach().softmax(0)
    hooked: Any = z  # untyped in torch
    hooked.register_hook(lambda gradient: gradient * weights.reshape(weights.shape + (1,) * (gradient.dim() - 2)))
    surrogate = -(weights * log_weights).sum(0).mean()
    return surrogate + (_negative_bound(log_weights) - surrogate).detach()


class _LogDensity(nn.Module):
    def __init__(self, posterior: Posterior) -> None:
        super().__init__()
        self.posterior = posterior

    def forward(self, parameters: Float[Tensor, "b p"], z: Float[Tensor, "k b ..."]) -> Float[Tensor, "k b"]:
        found: Distribution = self.posterior(parameters)
        return found.log_prob(z)


def _detached_log_density(
    posterior: Posterior, parameters: Float[Tensor, "b p"], z: Float[Tensor, "k b ..."]
) -> Float[Tensor, "k b"]:
    """Log q(z | x) with a gradient to z, but none to the encoder's output or the posterior's own weights."""
    density = _LogDensity(posterior)  # a distribution may use the weights when it is asked for a density
    weights = {name: weight.detach() for name, weight in density.named_parameters()}
    found: Tensor = torch.func.functional_call(density, weights, (parameters.detach(), z))
    return found
