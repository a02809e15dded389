"""`unflatten: 16`: a dense layer from a vector onto a map."""

import math
from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import FitError, Place, Shape, Size, Styled, describe, word


@word("unflatten")
class Unflatten(Styled):
    """Dense layer from a vector onto a map of `unflatten` channels, which the blocks after it grow to the image."""

    unflatten: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """A map of its channels."""
        return (self.unflatten, *(size or (1, 1)))

    takes = "vector"

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from torch import nn

        from vae_lab.model.blocks.layers import after

        if len(place.shape) == 3:
            raise FitError(f"'unflatten' makes a map of a vector, but gets {describe(place.shape)}; remove it")
        target = (self.unflatten, *(place.size or (1, 1)))
        layer = nn.Linear(place.shape[0], math.prod(target), bias=place.style.bias)
        return nn.Sequential(layer, nn.Unflatten(1, target), *after(place.style, self.unflatten))
