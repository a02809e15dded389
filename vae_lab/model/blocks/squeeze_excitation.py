"""`squeeze_excitation: 4`: squeeze and excitation."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Activation, Block, Place, word


@word("squeeze_excitation")
class SqueezeExcitation(Block):
    """Weights each channel by a function of all channels (Hu et al. 2018); the number is the reduction."""

    squeeze_excitation: Width
    activation: Activation | None = None

    scales = False

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks import modules

        return modules.SqueezeExcitation(place.channels, self.squeeze_excitation, place.style)
