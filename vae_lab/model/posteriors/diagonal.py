"""`posterior=diagonal`: a Gaussian with diagonal covariance for each image."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.model.distributions import DiagonalNormal
from vae_lab.model.interfaces import Posterior


class DiagonalPosterior(Posterior):
    """q(z | x) = N(μ(x), diag σ²(x)), from its mean and log-variance (Kingma & Welling 2014).

    Args:
        latent_shape: the shape of one z.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "log_variance")

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """A mean and a log-variance for each dimension."""
        return 2 * math.prod(latent_shape)

    def forward(self, parameters: Float[Tensor, "b p"]) -> DiagonalNormal:
        """The posteriors of a batch, computed in at least 32 bits."""
        if parameters.dtype in (torch.bfloat16, torch.float16):
            parameters = parameters.float()
        mean, log_variance = parameters.chunk(2, dim=1)
        return DiagonalNormal(mean, log_variance)
