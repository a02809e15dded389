"""`posterior=lfq`: the sign of each channel."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from vae_lab.config.base import NonNegative
from vae_lab.config.vocabulary import FitError
from vae_lab.model.blocks.layers import evaluating
from vae_lab.model.quantized import Codes, QuantizedPosterior

MOST_CHANNELS = 18


class LfqPosterior(QuantizedPosterior):
    """Lookup-free quantisation (Yu et al. 2024): −1 or 1 in each of c channels, so that K = 2ᶜ.

    Gradients are straight-through. The penalty of an image is, summed over its positions, commitment · ‖z − code‖² +
    entropy · (H[b | z] − diversity · H[b]): b are independent bits that are 1 with probability σ(4z), the softmax of
    the negative squared distances, and H[b] is their entropy with the mean probability of the batch. Entropies of
    several bits are the sums over the bits (Zhao et al. 2024), so the cost grows with c, not with 2ᶜ.

    Args:
        latent_shape: the shape of one z, with c channels.
        commitment: weight of ‖z − code‖².
        entropy: weight of the entropies, in nats.
        diversity: weight of the batch's entropy against that of each position; larger values use more codes.
    """

    is_quantized = True
    has_penalty = True

    def __init__(
        self,
        latent_shape: Sequence[int],
        *,
        commitment: NonNegative = 0.25,
        entropy: NonNegative = 0.1,
        diversity: NonNegative = 1.0,
    ) -> None:
        super().__init__(latent_shape)
        from vector_quantize_pytorch import LFQ

        channels = self.latent_shape[0]
        if channels > MOST_CHANNELS:
            wanted = self.with_channels(MOST_CHANNELS)
            raise FitError(
                f"{wanted.partition('=')[0]}: must have at most {MOST_CHANNELS} channels for posterior=lfq, whose "
                f"codes are 2^channels, but has {channels}; take {wanted}, or posterior=vq"
            )
        self.commitment, self.entropy, self.diversity = commitment, entropy, diversity
        self.needs_whole_batch = entropy > 0
        self.quantizer = LFQ(dim=channels)

    @property
    def codebook(self) -> Float[Tensor, "k c"]:
        """All codes."""
        return self.quantizer.codebook

    def quantize(self, vectors: Float[Tensor, "n c"]) -> Codes:
        """The signs of the vectors."""
        with evaluating(self.quantizer):  # in training it would compute a penalty of all codes
            codes, indices, _ = self.quantizer(vectors.unsqueeze(0))
        codes, indices = codes.squeeze(0), indices.squeeze(0).long()
        penalty = self.commitment * (vectors - codes).square().sum(1)
        if self.entropy:
            own = bit_entropy(4 * vectors)
            mean = (4 * vectors).sigmoid().mean(0)
            penalty = penalty + self.entropy * (own - self.diversity * bit_entropy(mean.logit(1e-6))).sum(1)
        return Codes(vectors + (codes - vectors).detach() if self.training else codes, indices, penalty)


def bit_entropy(logits: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The entropy of bits that are 1 with probability sigmoid(logits), in nats."""
    return softplus(logits) - logits * torch.sigmoid(logits)
