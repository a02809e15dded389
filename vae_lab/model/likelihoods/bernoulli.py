"""`likelihood=bernoulli`: each pixel is 0 or 1."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent

from vae_lab.model.interfaces import Likelihood


class BernoulliLikelihood(Likelihood):
    """p(x | z) = Π pᵢ^xᵢ (1 − pᵢ)^(1 − xᵢ), where the decoder puts out the log-odds of p; for binary images.

    Args:
        image_shape: channels, height and width of the images.
    """

    data: ClassVar = "binary"

    def forward(self, parameters: Float[Tensor, "b c h w"]) -> Distribution:
        """Distributions of images from their log-odds, in at least 32 bits."""
        logits = parameters.float() if parameters.element_size() < 4 else parameters
        return Independent(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)
