"""`pool: max`: pooling over 2×2 positions."""

from typing import Any, Literal

from vae_lab.config.vocabulary import Block, Place, Shape, Size, halvable, halved, word


@word("pool")
class Pool(Block):
    """Maximum or average over 2×2 positions: halves the map, rounding up."""

    pool: Literal["max", "avg"]

    scales = False

    def size_before(self, size: Size) -> Size:
        """Twice the size."""
        return tuple(2 * side for side in size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Half the size."""
        return (shape[0], *halved(shape[1:]))

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from torch import nn

        halvable(self, place)
        return nn.MaxPool2d(2, ceil_mode=True) if self.pool == "max" else nn.AvgPool2d(2, ceil_mode=True)
