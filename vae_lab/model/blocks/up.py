"""`up: 16`: a transposed convolution that doubles the map."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import AnyKernel, Place, Shape, Size, Styled, doubled, halved, word


@word("up")
class Up(Styled):
    """Transposed convolution with stride 2: doubles the map, minus one where the image size requires it."""

    up: Width
    kernel: AnyKernel = 3

    grows = 2

    def size_before(self, size: Size) -> Size:
        """Half the size."""
        return halved(size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`up` channels; twice the size."""
        return (self.up, *(size or doubled(shape[1:])))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks.layers import transposed

        return transposed(place.channels, self.up, self.kernel, place.style, place.sides, place.end)
