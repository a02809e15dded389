"""`posterior=full`: a Gaussian with full covariance for each image."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MultivariateNormal

from vae_lab.config.base import Bounds
from vae_lab.model.distributions import Reshaped, bounded
from vae_lab.model.interfaces import Posterior


class FullPosterior(Posterior):
    """q(z | x) = N(μ(x), L(x)·L(x)ᵀ), where L is the Cholesky factor (Kingma & Welling 2019, section 2.5.1).

    The encoder puts out μ, the logarithm of L's squared diagonal and, times √Z, the entries below it: Z + Z·(Z + 1)/2
    numbers. For Z = 256 these are 33,152, so its last layer is by far its largest.

    Args:
        latent_shape: the shape of one z.
        log_variance: bounds of the logarithm of L's squared diagonal, as in `posterior=diagonal`; null for none.
    """

    def __init__(self, latent_shape: Sequence[int], *, log_variance: Bounds | None = (-30.0, 20.0)) -> None:
        super().__init__(latent_shape)
        self.log_variance = log_variance

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """A mean and a row of the Cholesky factor for each dimension."""
        dim = math.prod(latent_shape)
        return dim + dim * (dim + 1) // 2

    def forward(self, parameters: Float[Tensor, "b p"]) -> MultivariateNormal | Reshaped:
        """The posteriors of a batch, computed in at least 32 bits."""
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        dim = math.prod(self.latent_shape)
        mean, log_variance, below = torch.split(parameters, [dim, dim, dim * (dim - 1) // 2], 1)
        root = torch.diag_embed(torch.exp(0.5 * bounded(log_variance, self.log_variance)))
        row, column = torch.tril_indices(dim, dim, -1, device=parameters.device)
        root[:, row, column] = below / math.sqrt(dim)  # else a row's variance grows with Z at the start
        vectors = MultivariateNormal(mean, scale_tril=root, validate_args=False)
        return vectors if len(self.latent_shape) == 1 else Reshaped(vectors, self.latent_shape)
