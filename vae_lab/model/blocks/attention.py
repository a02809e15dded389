"""`attention: 4`: self-attention over the map."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Block, FitError, Normalization, Place, describe, divisors, word


@word("attention")
class Attention(Block):
    """Self-attention between all positions of the map (Vaswani et al. 2017); the number is the number of heads."""

    attention: Width
    normalization: Normalization = "layer"

    scales = False

    def divisor_before(self) -> int:
        """The number of heads must divide the number of channels."""
        return self.attention

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks.modules import SelfAttention

        heads, channels = self.attention, place.channels
        if channels % heads:
            raise FitError(
                f"{heads} heads must share the channels evenly, but get {describe(place.shape)}; "
                f"{divisors(channels)} would, or another width before it"
            )
        if max(place.sides) == 1:
            raise FitError(
                f"has no other position to attend to: it gets {describe(place.shape)}; put it on a larger map"
            )
        return SelfAttention(channels, heads, place.style)
