"""`convnext: 16`: a ConvNeXt block."""

from typing import Annotated, Any

from pydantic import Field

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Activation, Block, Normalization, OddKernel, Place, Shape, Size, word


@word("convnext")
class ConvNext(Block):
    """ConvNeXt block (Liu et al. 2022), with GELU and layer normalisation unless the block sets others."""

    convnext: Width
    kernel: OddKernel = 7
    expansion: Annotated[int, Field(ge=1, le=64)] = 4
    activation: Activation = "gelu"
    normalization: Normalization = "layer"

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """`convnext` channels; the size does not change."""
        return (self.convnext, *shape[1:])

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks import modules

        return modules.convnext(place.channels, self.convnext, self.kernel, self.expansion, place.style)
