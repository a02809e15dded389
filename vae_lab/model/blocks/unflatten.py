"""`unflatten: 16`: a dense layer from a vector to a map."""

import math
from typing import Any

from vae_lab.config.base import Width
from vae_lab.config.vocabulary import FitError, Place, Shape, Size, Styled, describe, word


@word("unflatten")
class Unflatten(Styled):
    """Dense layer from a vector to a map of `unflatten` channels, which later blocks enlarge to the image size."""

    unflatten: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """A map of `unflatten` channels."""
        return (self.unflatten, *(size or (1, 1)))

    takes = "vector"

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from torch import nn

        from vae_lab.model.blocks.layers import after, made

        if len(place.shape) == 3:
            raise FitError(f"'unflatten' makes a map of a vector, but gets {describe(place.shape)}; remove it")
        target = (made(place.style, self.unflatten), *(place.size or (1, 1)))
        layer = nn.Linear(place.shape[0], math.prod(target), bias=place.style.bias)
        return nn.Sequential(layer, nn.Unflatten(1, target), *after(place.style, self.unflatten))
