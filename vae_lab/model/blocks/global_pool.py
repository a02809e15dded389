"""`global_pool: avg`: pooling over the whole map."""

from typing import Any, Literal

from vae_lab.config.vocabulary import Block, Place, Shape, Size, word


@word("global_pool")
class GlobalPool(Block):
    """Maximum or average over the whole map: one number per channel."""

    global_pool: Literal["max", "avg"]

    scales = False

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """The channels only."""
        return shape[:1]

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from vae_lab.model.blocks import modules

        return modules.GlobalPool(self.global_pool)
