"""`depthwise: 16`: a depthwise-separable convolution."""

from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Place, Shape, Size, Strided, StridedKernel, strided, takes_kernel, word


@word("depthwise")
class Depthwise(Strided):
    """Depthwise-separable convolution (Howard et al. 2017): one filter per channel, then a 1×1 convolution."""

    depthwise: Width
    kernel: StridedKernel = 3

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`depthwise` channels; the size divided by the stride."""
        return (self.depthwise, *strided(shape[1:], self.stride, self.kernel))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from torch import nn

        from vae_lab.model.blocks.layers import convolution

        takes_kernel(self.kernel, place)
        channels = place.channels
        return nn.Sequential(
            *convolution(channels, channels, self.kernel, place.style, self.stride, groups=channels),
            *convolution(channels, self.depthwise, 1, place.style),
        )
