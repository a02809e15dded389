"""`dense: 16`: a fully connected layer."""

import math
from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import Place, Shape, Size, Styled, word


@word("dense")
class Dense(Styled):
    """Fully connected layer; flattens a map first."""

    dense: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """A vector of `dense` numbers."""
        return (self.dense,)

    takes = "either"

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from torch import nn

        from vae_lab.model.blocks.layers import after, made

        layer = nn.Linear(math.prod(place.shape), made(place.style, self.dense), bias=place.style.bias)
        return nn.Sequential(nn.Flatten(), layer, *after(place.style, self.dense, spatial=False))
