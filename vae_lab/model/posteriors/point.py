"""`posterior=point`: one code for each image, without noise."""

import math

from jaxtyping import Float
from torch import Tensor

from vae_lab.model.distributions import Point
from vae_lab.model.interfaces import Posterior


class PointPosterior(Posterior):
    """All probability at one code: the model is a deterministic autoencoder (Ghosh et al. 2020).

    There is no density, thus no KL divergence, no bound in nats and no mutual information. Objectives that need one are
    refused, and samples of the prior mean little: take `metrics.samplers`, which fits a density to the codes.

    Args:
        latent_shape: the shape of one z.
    """

    is_spatial = True
    has_density = False

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """One value for each dimension."""
        return math.prod(latent_shape)

    def forward(self, parameters: Float[Tensor, "b p"]) -> Point:
        """The codes of a batch, in at least 32 bits."""
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        return Point(self.as_codes(parameters), len(self.latent_shape))
