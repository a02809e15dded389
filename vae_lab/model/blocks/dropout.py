"""`dropout: 0.1`: dropout."""

from typing import Annotated, Any

from pydantic import Field

from vae_lab.config.vocabulary import Block, Place, word


@word("dropout")
class Dropout(Block):
    """Each number set to zero with this probability while training (Srivastava et al. 2014)."""

    dropout: Annotated[float, Field(ge=0, lt=1)]

    scales = False

    takes = "either"

    def build(self, place: Place) -> Any:
        """The module of the block at its place."""
        from torch import nn

        return nn.Dropout(self.dropout)
