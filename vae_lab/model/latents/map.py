"""`latent=map`: codes are maps, as in the autoencoders of latent diffusion models."""

from vae_lab.config.base import MapShape
from vae_lab.model.interfaces import Latent


class MapLatent(Latent):
    """Maps of `shape` (channels, height, width), as in Rombach et al. 2022.

    Args:
        shape: channels, height and width of a code; Z is their product.
    """

    def __init__(self, *, shape: MapShape) -> None:
        self._shape = tuple(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return self._shape
