"""`encdec: 16`: the encoder-decoder block."""

from typing import Annotated, Any

from pydantic import Field

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import OddKernel, Place, Styled, halvable, word


@word("encdec")
class EncDec(Styled):
    """Encoder-decoder block: strided convolutions to `encdec` channels, then transposed convolutions back."""

    encdec: Width
    kernel: OddKernel = 3
    depth: Annotated[int, Field(ge=1, le=20)] = 1
    skip: bool = False

    keeps_channels = True

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks.modules import Hourglass

        halvable(self, place, self.depth)
        return Hourglass(place.shape, self.encdec, self.kernel, place.style, self.depth, skip=self.skip)
