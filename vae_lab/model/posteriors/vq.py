"""`posterior=vq`: codes of a codebook that is learned."""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vae_lab.config.base import NonNegative
from vae_lab.data import shards
from vae_lab.model.quantized import Codes, QuantizedPosterior


class VqPosterior(QuantizedPosterior):
    """The nearest code of a codebook (van den Oord et al. 2017), with straight-through gradients.

    The codebook is not trained by the optimiser: in each training step a code moves towards the mean of the vectors
    that it is nearest to, as in the paper's appendix A.1. A code that is nearest to hardly any is replaced by a vector
    of the batch, so that the codebook also starts from the data. The arithmetic is that of vector-quantize-pytorch.

    Args:
        latent_shape: the shape of one z.
        codebook_size: K, the number of codes.
        commitment: weight of ‖z − code‖², which keeps the encoder's output near its codes.
        decay: of the running means of vectors and of their number.
        replace_below: a code is replaced if the running number of its vectors in a batch is less; 0 for never.
    """

    is_quantized = True
    has_penalty = True

    def __init__(
        self,
        latent_shape: Sequence[int],
        *,
        codebook_size: Annotated[int, Field(ge=2, le=262_144)] = 512,
        commitment: NonNegative = 0.25,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        replace_below: NonNegative = 1.0,
    ) -> None:
        super().__init__(latent_shape)
        from vector_quantize_pytorch import VectorQuantize

        self.commitment = commitment
        self.quantizer = VectorQuantize(
            self.latent_shape[0], codebook_size, decay=decay, threshold_ema_dead_code=replace_below,
            commitment_weight=0.0, rotation_trick=False, sync_codebook=shards.mine().processes > 1,
        )  # fmt: skip

    @property
    def codebook(self) -> Float[Tensor, "k c"]:
        """All codes."""
        found: Tensor = self.quantizer.codebook
        return found

    def quantize(self, vectors: Float[Tensor, "n c"]) -> Codes:
        """The nearest codes; in training steps the codebook learns."""
        if self.training and torch.is_grad_enabled():
            codes, indices, loss = self.quantizer(vectors)
            loss.requires_grad_(False)  # a buffer of the quantiser, 0, which it would train
        else:
            codebook = self.codebook.to(vectors.dtype)
            indices = (codebook.square().sum(1) - 2 * vectors @ codebook.T).argmin(1)
            codes = codebook[indices]
        return Codes(codes, indices, self.commitment * (vectors - codes.detach()).square().sum(1))
