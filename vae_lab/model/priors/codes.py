"""`prior=codes`: each code of a quantised posterior with the same probability."""

from vae_lab.model.interfaces import Prior
from vae_lab.model.quantized import QuantizedPosterior, UniformCodes


class CodesPrior(Prior):
    """p(z) = 1/K for each of K codes, in each position (van den Oord et al. 2017, section 3.2).

    The KL divergence is then the same for every image: the number of positions times ln K nats. The codes are those of
    the model's posterior.

    Args:
        latent_shape: the shape of one z.
    """

    is_quantized = True

    def forward(self) -> UniformCodes:
        """The distribution of one z."""
        posterior = self.model.posterior
        assert isinstance(posterior, QuantizedPosterior), "checked before training"
        return UniformCodes(posterior.codebook, self.latent_shape)
