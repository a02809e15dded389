"""`posterior=hierarchical`: two levels of codes for each image, the lower of which depends on the upper."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.config.base import Bounds, Width
from vae_lab.model.distributions import DiagonalNormal, bounded
from vae_lab.model.hierarchy import Conditional, Hierarchy
from vae_lab.model.interfaces import Posterior


class HierarchicalPosterior(Posterior):
    """q(z | x) = q(z₂ | x) · q(z₁ | x, z₂), both diagonal Gaussians (Tomczak & Welling 2018, section 4).

    A code is the vector (z₂, z₁), z₂ being its first half. The encoder puts out the moments of z₂ and a context, from
    which, with z₂, a network makes those of z₁.

    Args:
        latent_shape: the shape of one z, an even number of dimensions.
        width: width of the network's two hidden layers, which are gated.
        context: number of values that the encoder gives to it.
        log_variance: bounds of ln σ² of both, as in `posterior=diagonal`; null for none.

    Raises:
        ValueError: if codes are maps, or their number of dimensions is odd.
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        *,
        width: Width = 300,
        context: Width = 300,
        log_variance: Bounds | None = (-30.0, 20.0),
    ) -> None:
        super().__init__(latent_shape)
        self.level = half_of(self.latent_shape)
        self.context = context
        self.log_variance = log_variance
        self.below = Conditional(self.level + context, self.level, width, log_variance)

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """A mean and a log-variance for each dimension of z₂, and the context."""
        return 2 * half_of(latent_shape) + self.context

    def forward(self, parameters: Float[Tensor, "b p"]) -> Hierarchy:
        """The posteriors of a batch, computed in at least 32 bits."""
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        mean, log_variance, context = torch.split(parameters, [self.level, self.level, self.context], 1)

        def bottom(top: Tensor) -> DiagonalNormal:
            batch = torch.broadcast_shapes(top.shape[:-1], context.shape[:-1])  # type: ignore[no-untyped-call]
            given: DiagonalNormal = self.below(torch.cat([top.expand(*batch, -1), context.expand(*batch, -1)], -1))
            return given

        return Hierarchy(DiagonalNormal(mean, bounded(log_variance, self.log_variance)), bottom, self.level)


def half_of(latent_shape: Sequence[int]) -> int:
    """The number of dimensions of each of the two levels.

    Raises:
        ValueError: if codes are no vectors with an even number of dimensions.
    """
    if len(latent_shape) != 1 or latent_shape[0] % 2:
        raise ValueError(
            f"two levels need vectors with an even number of dimensions, such as latent.dim=80, but codes have the "
            f"shape {tuple(latent_shape)}"
        )
    return latent_shape[0] // 2
