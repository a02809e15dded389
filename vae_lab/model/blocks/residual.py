"""`residual: 16`: a residual block."""

from typing import Any, Literal

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import OddKernel, Place, Shape, Size, Strided, strided, word


@word("residual")
class Residual(Strided):
    """Residual block (He et al. 2016): two or three convolutions and a skip connection."""

    residual: Width
    kernel: OddKernel = 3
    kind: Literal["post", "pre", "bottleneck"] = "post"

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`residual` channels; the size divided by the stride."""
        return (self.residual, *strided(shape[1:], self.stride))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks import modules

        return modules.residual(place.channels, self.residual, self.kernel, self.kind, place.style, self.stride)
