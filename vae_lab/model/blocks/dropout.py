"""`dropout: 0.1`: dropout."""

from typing import Annotated, Any

from pydantic import Field

from vae_lab.config.vocabulary import Block, Place, word


@word("dropout")
class Dropout(Block):
    """Sets each number to zero with this probability during training (Srivastava et al. 2014)."""

    dropout: Annotated[float, Field(ge=0, lt=1)]

    scales = False

    takes = "either"

    def build(self, place: Place) -> Any:
        """Build the module of this block."""
        from torch import nn

        return nn.Dropout(self.dropout)
