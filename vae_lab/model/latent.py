"""The latent space: posterior parameters to a sample and its divergence from the prior."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Posterior(NamedTuple):
    """A Gaussian with diagonal covariance for each image."""

    mean: Float[Tensor, "b z"]
    log_variance: Float[Tensor, "b z"]


class Gaussian(nn.Module):
    """Gaussian posterior with diagonal covariance, standard normal prior (Kingma & Welling 2014).

    Args:
        dim: latent dimensions, z in the shapes.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @property
    def num_parameters(self) -> int:
        """How many numbers describe one posterior: a mean and a log-variance for each dimension."""
        return 2 * self.dim

    def posterior(self, parameters: Float[Tensor, "b p"]) -> Posterior:
        """The posterior that an encoder's output describes; its arithmetic is in 32 bits at least."""
        if parameters.dtype in (torch.bfloat16, torch.float16):
            parameters = parameters.float()
        mean, log_variance = parameters.chunk(2, dim=1)
        return Posterior(mean, log_variance)

    def sample(self, posterior: Posterior, noise: Float[Tensor, "b z"] | None = None) -> Float[Tensor, "b z"]:
        """One z for each image: mean + σ·noise, the noise standard normal and drawn here unless given."""
        if noise is None:
            noise = torch.randn_like(posterior.mean)
        return posterior.mean + torch.exp(0.5 * posterior.log_variance) * noise

    def kl(self, posterior: Posterior) -> Float[Tensor, "b z"]:
        """KL(q(z_i | x) ‖ N(0, 1)) in nats for each image and dimension (ibid., appendix B)."""
        mean, log_variance = posterior
        return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1)

    def log_posterior(self, posterior: Posterior, z: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """Log q(z | x) of one z for each image, in nats."""
        mean, log_variance = posterior
        squared = (z - mean).square() * torch.exp(-log_variance)
        return -0.5 * (squared + log_variance + math.log(2 * math.pi)).sum(1)

    def log_prior(self, z: Float[Tensor, "b z"]) -> Float[Tensor, " b"]:
        """Log p(z) of each z, in nats."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

    def sample_prior(self, count: int, generator: torch.Generator) -> Float[Tensor, "n z"]:
        """Samples of the prior; the generator's device is the CPU, so that they are the same on every device."""
        return torch.randn(count, self.dim, generator=generator)
