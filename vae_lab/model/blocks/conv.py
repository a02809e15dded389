"""`conv: 16`: a convolution."""

from typing import Annotated, Any

from pydantic import Field

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import (
    FitError,
    Place,
    Shape,
    Size,
    Strided,
    StridedKernel,
    divisors,
    strided,
    takes_kernel,
    word,
)


@word("conv")
class Conv(Strided):
    """Convolution; with stride 1 it keeps the size of the map."""

    conv: Width
    kernel: StridedKernel = 3
    dilation: Annotated[int, Field(ge=1, le=16)] = 1
    groups: Width = 1

    def divisor(self) -> int:
        """The number of groups must divide the output channels."""
        return self.groups

    def divisor_before(self) -> int:
        """The number of groups must divide the input channels."""
        return self.groups

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`conv` channels; the size divided by the stride."""
        return (self.conv, *strided(shape[1:], self.stride, self.kernel, self.dilation))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks.layers import convolution

        for which, channels in (("that come in", place.channels), ("that it makes", self.conv)):
            if channels % self.groups:
                raise FitError(
                    f"groups: {self.groups} must divide the channels {which}, but they are {channels}; "
                    f"{divisors(channels)} would"
                )
        takes_kernel(self.kernel, place, self.dilation)
        return convolution(place.channels, self.conv, self.kernel, place.style, self.stride, self.dilation, self.groups)
