"""`posterior=fsq`: each channel rounded to a few levels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.config.base import Levels
from vae_lab.config.vocabulary import FitError
from vae_lab.model.quantized import Codes, QuantizedPosterior


class FsqPosterior(QuantizedPosterior):
    """Finite scalar quantisation (Mentzer et al. 2024): each channel is bounded and rounded to one of its levels.

    The codebook, all combinations of the levels, is not learned, and there is no penalty. Rounding has straight-through
    gradients. The arithmetic is that of vector-quantize-pytorch.

    Args:
        latent_shape: the shape of one z, with a channel for each number of levels.
        levels: the number of levels of each channel; their product is K, the number of codes.
    """

    is_quantized = True

    def __init__(self, latent_shape: Sequence[int], *, levels: Levels = (8, 5, 5, 5)) -> None:
        super().__init__(latent_shape)
        from vector_quantize_pytorch import FSQ

        channels = self.latent_shape[0]
        if len(levels) != channels:
            raise FitError(
                f"posterior.levels: must be a number for each of the {channels} channels of a code, but is "
                f"{list(levels)}; take {self.with_channels(len(levels))}, or {channels} levels"
            )
        with torch.device("cpu"):  # it reads its numbers, which the meta device does not have
            self.quantizer = FSQ(list(levels), preserve_symmetry=2 in levels)

    @property
    def codebook(self) -> Float[Tensor, "k c"]:
        """All codes."""
        return self.quantizer.implicit_codebook

    def quantize(self, vectors: Float[Tensor, "n c"]) -> Codes:
        """The vectors, bounded and rounded."""
        codes, indices = self.quantizer(vectors.unsqueeze(0))
        return Codes(codes.squeeze(0), indices.squeeze(0).long())
