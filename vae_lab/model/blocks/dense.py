"""`dense: 16`: a fully connected layer."""

import math
from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Place, Shape, Size, Styled, word


@word("dense")
class Dense(Styled):
    """Fully connected layer; a map is flattened for it."""

    dense: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """A vector."""
        return (self.dense,)

    takes = "either"

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from torch import nn

        from vae_lab.model.blocks.layers import after

        layer = nn.Linear(math.prod(place.shape), self.dense, bias=place.style.bias)
        return nn.Sequential(nn.Flatten(), layer, *after(place.style, self.dense, spatial=False))
