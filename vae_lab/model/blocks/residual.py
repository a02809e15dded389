"""`residual: 16`: a residual block."""

from typing import Any, Literal

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import OddKernel, Place, Shape, Size, Strided, strided, word


@word("residual")
class Residual(Strided):
    """Residual block (He et al. 2016): two or three convolutions and a way around them."""

    residual: Width
    kernel: OddKernel = 3
    kind: Literal["post", "pre", "bottleneck"] = "post"

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, the size by the stride."""
        return (self.residual, *strided(shape[1:], self.stride))

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from vae_lab.model.blocks.modules import residual as make_residual

        return make_residual(place.channels, self.residual, self.kernel, self.kind, place.style, self.stride)
