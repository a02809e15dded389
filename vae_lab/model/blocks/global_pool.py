"""`global_pool: avg`: pooling over the whole map."""

from typing import Any, Literal

from vae_lab.config.vocabulary import Block, Place, Shape, Size, word


@word("global_pool")
class GlobalPool(Block):
    """Maximum or average over the whole map: a vector of its channels."""

    global_pool: Literal["max", "avg"]

    scales = False

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """The channels alone."""
        return shape[:1]

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from vae_lab.model.blocks.modules import GlobalPool as make_GlobalPool

        return make_GlobalPool(self.global_pool)
