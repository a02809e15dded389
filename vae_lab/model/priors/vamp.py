"""`prior=vamp`: the mean of the posteriors of pseudo-inputs, which are trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily

from vae_lab.config.base import Width
from vae_lab.model.blocks.layers import evaluating
from vae_lab.model.distributions import mixture
from vae_lab.model.hierarchy import Hierarchy
from vae_lab.model.interfaces import Prior

if TYPE_CHECKING:
    from vae_lab.model.vae import VAE


class VampPrior(Prior):
    """p(z) = (1/K) Σₖ q(z | uₖ), the mean posterior of K pseudo-inputs u (Tomczak & Welling 2018).

    Pseudo-inputs are images, trained with the networks, also through the encoder. They start as noise: the sigmoid of
    N(0, 1) in each pixel. Each step encodes them in addition to the batch, in evaluation mode: batch normalisation then
    uses its running statistics, which the pseudo-inputs do not change.

    Args:
        latent_shape: the shape of one z.
        components: K, the number of pseudo-inputs.
    """

    def __init__(self, latent_shape: Sequence[int], *, components: Width = 50) -> None:
        super().__init__(latent_shape)
        self.components = components
        self.logits: nn.Parameter | None
        self.register_parameter("logits", None)

    def belong_to(self, model: "VAE") -> None:
        """Set the model, whose images have the shape of the pseudo-inputs."""
        super().belong_to(model)
        if model.image_shape is None:
            raise ValueError("prior=vamp needs a model with an image_shape, the shape of its pseudo-inputs")
        if self.logits is None:
            self.logits = nn.Parameter(torch.randn(self.components, *model.image_shape))

    def images(self) -> Float[Tensor, "k c h w"]:
        """The pseudo-inputs, with values in [0, 1]."""
        assert self.logits is not None, "the prior is part of a model"
        return torch.sigmoid(self.logits)

    def forward(self) -> MixtureSameFamily:
        """The distribution of one z."""
        with evaluating(self.model.encoder):
            components = self.model.posterior(self.model.encoder(self.images()))
        if isinstance(components, Hierarchy) and components.event_shape != self.latent_shape:
            components = components.top  # the prior of the upper level
        return mixture(torch.zeros_like(components.mean.flatten(1)[:, 0]), components)
