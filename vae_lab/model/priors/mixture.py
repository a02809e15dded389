"""`prior=mixture`: a mixture of Gaussians that are trained."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributions import MixtureSameFamily

from vae_lab.config.base import Width
from vae_lab.model.distributions import DiagonalNormal, mixture
from vae_lab.model.interfaces import Prior

START = 0.3
"""Standard deviation of the components' means at the start: near N(0, I), and apart."""


class MixturePrior(Prior):
    """p(z) = Σₖ πₖ N(z; μₖ, diag σₖ²), with trained weights, means and variances (Dilokthanakul et al. 2016).

    Args:
        latent_shape: the shape of one z.
        components: number of Gaussians.
    """

    def __init__(self, latent_shape: Sequence[int], *, components: Width = 10) -> None:
        super().__init__(latent_shape)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(START * torch.randn(components, *self.latent_shape))
        self.log_variances = nn.Parameter(torch.zeros(components, *self.latent_shape))

    def forward(self) -> MixtureSameFamily:
        """The distribution of one z."""
        components = DiagonalNormal(self.means, self.log_variances, len(self.latent_shape))
        return mixture(self.logits, components)
