"""`prior=hierarchical`: two levels of codes, the lower of which depends on the upper."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from vae_lab.config.base import Bounds, Width
from vae_lab.model.hierarchy import Conditional, Hierarchy
from vae_lab.model.interfaces import Prior
from vae_lab.model.posteriors.hierarchical import HierarchicalPosterior, half_of
from vae_lab.model.priors.standard import StandardPrior
from vae_lab.model.priors.vamp import VampPrior

if TYPE_CHECKING:
    from vae_lab.model.vae import VAE


class HierarchicalPrior(Prior):
    """p(z) = p(z₂) · p(z₁ | z₂), whose second factor is a diagonal Gaussian from a network (Tomczak & Welling 2018).

    A code is the vector (z₂, z₁), z₂ being its first half, as in `posterior=hierarchical`.

    Args:
        latent_shape: the shape of one z, an even number of dimensions.
        top: p(z₂): `standard`, N(0, I); `vamp`, the mean of q(z₂ | u) over pseudo-inputs u, see `prior=vamp`.
        components: number of pseudo-inputs.
        width: width of the network's two hidden layers, which are gated.
        log_variance: bounds of ln σ² of z₁, as in `posterior=diagonal`; null for none.

    Raises:
        ValueError: if codes are maps, or their number of dimensions is odd.
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        *,
        top: Literal["standard", "vamp"] = "standard",
        components: Width = 500,
        width: Width = 300,
        log_variance: Bounds | None = (-30.0, 20.0),
    ) -> None:
        super().__init__(latent_shape)
        self.level = half_of(self.latent_shape)
        is_vamp = top == "vamp"
        self.top: Prior = VampPrior([self.level], components=components) if is_vamp else StandardPrior([self.level])
        self.below = Conditional(self.level, self.level, width, log_variance)

    def belong_to(self, model: "VAE") -> None:
        """Set the model, whose encoder and posterior the pseudo-inputs go through."""
        super().belong_to(model)
        if isinstance(self.top, VampPrior) and not isinstance(model.posterior, HierarchicalPosterior):
            raise ValueError("top=vamp needs q(z₂ | u), which only posterior=hierarchical has; take it, or prior=vamp")
        self.top.belong_to(model)

    def images(self) -> Float[Tensor, "k c h w"] | None:
        """The pseudo-inputs, if there are any."""
        return self.top.images()

    def forward(self) -> Hierarchy:
        """The distribution of one z."""
        return Hierarchy(self.top(), self.below, self.level)
