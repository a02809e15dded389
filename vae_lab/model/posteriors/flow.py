"""`posterior=flow`: a diagonal Gaussian for each image, bent by a normalising flow."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vae_lab.config.base import Bounds, Width
from vae_lab.model.distributions import DiagonalNormal, bounded
from vae_lab.model.flows import Couplings, Flow
from vae_lab.model.interfaces import Posterior


class FlowPosterior(Posterior):
    """z = f(ε; c(x)), ε ~ N(μ(x), diag σ²(x)), where f is an affine coupling flow (Rezende & Mohamed 2015).

    The encoder puts out μ, log σ² and a context c, which the networks of all coupling layers take. Sampling and density
    each cost one pass through these networks, whatever Z is. The mean is f(μ; c), see `Flow`.

    Args:
        latent_shape: the shape of one z.
        layers: number of coupling layers.
        width: width of the hidden layers of their networks.
        context: number of values of c.
        log_variance: bounds of ln σ², as in `posterior=diagonal`; null for none.
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        *,
        layers: Annotated[int, Field(ge=1, le=64)] = 4,
        width: Width = 64,
        context: Width = 16,
        log_variance: Bounds | None = (-30.0, 20.0),
    ) -> None:
        super().__init__(latent_shape)
        self.context = context
        self.log_variance = log_variance
        self.couplings = Couplings(math.prod(self.latent_shape), layers, context, width)

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """A mean and a log-variance for each dimension, and the context."""
        return 2 * math.prod(latent_shape) + self.context

    def forward(self, parameters: Float[Tensor, "b p"]) -> Flow:
        """The posteriors of a batch, computed in at least 32 bits."""
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        dim = math.prod(self.latent_shape)
        *moments, context = torch.split(parameters, [dim, dim, self.context], 1)
        mean, log_variance = map(self.as_codes, moments)
        base = DiagonalNormal(mean, bounded(log_variance, self.log_variance), len(self.latent_shape))
        return Flow(base, self.couplings, context)
