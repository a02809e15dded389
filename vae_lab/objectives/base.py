"""The interface of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vae_lab.model.vae import VAE


class Objective(nn.Module, ABC):
    """A model, images and the progress of the training to named terms, of which `total` is minimised.

    The keys of its section are the keyword-only arguments of its class.
    """

    units: ClassVar[Mapping[str, str]]
    """Term → its unit: `nats per image`, …. `total`, `reconstruction` and `kl` are among them, and every other term."""

    only_likelihood: ClassVar[str | None] = None
    """The likelihood that it trains, by the name of its class; None if it trains the model's, whichever that is."""

    is_likelihood_trained: ClassVar[bool]
    """Whether its models are measured in nats, under the model's likelihood. False for a loss that is no likelihood."""

    @abstractmethod
    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        """The terms, each the mean over the images of a batch.

        Args:
            vae: the model.
            images: with values in [0, 1].
            progress: the part of the training that is done, from 0 to 1.
        """

    def elbo(self, terms: Mapping[str, float], vae: VAE) -> float | None:
        """The evidence lower bound in nats per image that terms amount to; None if it does not follow from them."""
        return None

    def measures(self, vae: VAE) -> bool:
        """Whether a model under this objective is measured in nats."""
        return self.is_likelihood_trained
