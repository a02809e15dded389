"""`prior=standard`: N(0, I)."""

from collections.abc import Sequence

import torch

from vae_lab.model.distributions import StandardNormal
from vae_lab.model.interfaces import Prior


class StandardPrior(Prior):
    """p(z) = N(0, I).

    Args:
        latent_shape: the shape of one z.
    """

    origin: torch.Tensor

    def __init__(self, latent_shape: Sequence[int]) -> None:
        super().__init__(latent_shape)
        self.register_buffer("origin", torch.zeros(self.latent_shape), persistent=False)

    def forward(self) -> StandardNormal:
        """The distribution of one z."""
        return StandardNormal(self.origin)
