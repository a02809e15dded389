"""`squeeze_excitation: 4`: squeeze and excitation."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Activation, Block, Place, word


@word("squeeze_excitation")
class SqueezeExcitation(Block):
    """Each channel weighted by what all say together (Hu et al. 2018); the number is the reduction."""

    squeeze_excitation: Width
    activation: Activation | None = None

    scales = False

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from vae_lab.model.blocks.modules import SqueezeExcitation as make_SqueezeExcitation

        return make_SqueezeExcitation(place.channels, self.squeeze_excitation, place.style)
