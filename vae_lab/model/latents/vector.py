"""`latent=vector`: codes are vectors."""

from vae_lab.config.base import Width
from vae_lab.model.interfaces import Latent


class VectorLatent(Latent):
    """Vectors of `dim` numbers.

    Args:
        dim: latent dimensions, Z.
    """

    def __init__(self, *, dim: Width) -> None:
        self.dim = dim

    @property
    def shape(self) -> tuple[int, ...]:
        """(dim,)."""
        return (self.dim,)
