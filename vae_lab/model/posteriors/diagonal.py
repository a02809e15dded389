"""`posterior=diagonal`: a Gaussian with diagonal covariance for each image."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.config.base import Bounds
from vae_lab.model.distributions import DiagonalNormal, bounded
from vae_lab.model.interfaces import Posterior


class DiagonalPosterior(Posterior):
    """q(z | x) = N(μ(x), diag σ²(x)), from its mean and log-variance (Kingma & Welling 2014).

    Args:
        latent_shape: the shape of one z.
        log_variance: bounds of ln σ²; null for none. Without bounds σ² can overflow in training. The default is
            that of latent diffusion models (Rombach et al. 2022); healthy models stay far inside.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "log_variance")
    is_spatial = True

    def __init__(self, latent_shape: Sequence[int], *, log_variance: Bounds | None = (-30.0, 20.0)) -> None:
        super().__init__(latent_shape)
        self.log_variance = log_variance

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """A mean and a log-variance for each dimension."""
        return 2 * math.prod(latent_shape)

    def forward(self, parameters: Float[Tensor, "b p"]) -> DiagonalNormal:
        """The posteriors of a batch, computed in at least 32 bits."""
        if parameters.dtype in (torch.bfloat16, torch.float16):
            parameters = parameters.float()
        mean, log_variance = map(self.as_codes, parameters.chunk(2, dim=1))
        return DiagonalNormal(mean, bounded(log_variance, self.log_variance), len(self.latent_shape))
