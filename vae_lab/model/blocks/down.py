"""`down: 16`: a convolution that halves the map."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import AnyKernel, Place, Shape, Size, Styled, halvable, strided, takes_kernel, word


@word("down")
class Down(Styled):
    """Convolution with stride 2: halves the map, rounding up (an even kernel rounds down)."""

    down: Width
    kernel: AnyKernel = 3

    def size_before(self, size: Size) -> Size:
        """Twice the size."""
        return tuple(2 * side for side in size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`down` channels; half the size."""
        return (self.down, *strided(shape[1:], 2, self.kernel))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks.layers import convolution

        halvable(self, place)
        takes_kernel(self.kernel, place)
        return convolution(place.channels, self.down, self.kernel, place.style, stride=2)
