"""`resize: 16`: a resize-convolution."""

from typing import Any, Literal

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import OddKernel, Place, Shape, Size, Styled, doubled, halved, word


@word("resize")
class Resize(Styled):
    """Resize-convolution (Odena et al. 2016): interpolates the map to twice its size, then convolves it."""

    resize: Width
    kernel: OddKernel = 3
    mode: Literal["nearest", "bilinear"] = "nearest"

    grows = 2

    def size_before(self, size: Size) -> Size:
        """Half the size."""
        return halved(size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`resize` channels; twice the size."""
        return (self.resize, *(size or doubled(shape[1:])))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from torch import nn

        from vae_lab.model.blocks.layers import Rescale, convolution

        return nn.Sequential(
            Rescale(place.end, self.mode), *convolution(place.channels, self.resize, self.kernel, place.style)
        )
