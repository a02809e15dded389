"""`convnext: 16`: a ConvNeXt block."""

from typing import Annotated, Any

from pydantic import Field

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Activation, Block, Normalization, OddKernel, Place, Shape, Size, word


@word("convnext")
class ConvNext(Block):
    """ConvNeXt block (Liu et al. 2022), with its own activation and normalisation unless the block names others."""

    convnext: Width
    kernel: OddKernel = 7
    expansion: Annotated[int, Field(ge=1, le=64)] = 4
    activation: Activation = "gelu"
    normalization: Normalization = "layer"

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, the size as it was."""
        return (self.convnext, *shape[1:])

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from vae_lab.model.blocks.modules import convnext as make_convnext

        return make_convnext(place.channels, self.convnext, self.kernel, self.expansion, place.style)
