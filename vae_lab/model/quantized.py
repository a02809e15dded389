"""Codes from a finite codebook: their distributions, and what the posteriors that quantise share."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, register_kl

from vae_lab.model.blocks.layers import in_32_bits
from vae_lab.model.interfaces import Posterior


class Quantized(Distribution):
    """All probability at one code of a codebook in each position; z is these codes.

    Args:
        mean: the codes, (b, c, *positions).
        indices: their numbers in the codebook, (b, *positions).
        penalty: what an objective adds to its total, (b,); None for nothing.
        num_codes: K, the number of codes.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self,
        mean: Float[Tensor, "b c ..."],
        indices: Int[Tensor, "b ..."],
        penalty: Float[Tensor, " b"] | None,
        num_codes: int,
    ) -> None:
        self._mean, self.indices, self.penalty, self.num_codes = mean, indices, penalty, num_codes
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "b c ..."]:
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "b c ..."]:
        return torch.zeros_like(self._mean)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return self._mean.expand((*sample_shape, *self._mean.shape))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The logarithm of the mass, which is 0 at the code: a mass, since codes are discrete."""
        return torch.zeros_like(value.flatten(-len(self.event_shape))[..., 0])


class UniformCodes(Distribution):
    """Each code of a codebook with the same probability, independently in each position.

    Args:
        codebook: (k, c).
        shape: the event shape, (c, *positions).
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, codebook: Float[Tensor, "k c"], shape: Sequence[int]) -> None:
        self.codebook = codebook
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        draws = torch.rand((*sample_shape, *self.event_shape[1:]), device=self.codebook.device)
        return as_map(self.codebook, (draws * len(self.codebook)).long(), len(self.event_shape) - 1)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The logarithm of the mass of a code, the same for all."""
        nats = math.prod(self.event_shape[1:]) * math.log(len(self.codebook))
        return torch.full_like(value.flatten(-len(self.event_shape))[..., 0], -nats)


def as_map(codebook: Float[Tensor, "k c"], indices: Int[Tensor, "..."], positions: int) -> Float[Tensor, "..."]:
    """Look codes up: (*batch, *positions) → (*batch, c, *positions), for this many dimensions of positions."""
    return codebook[indices].movedim(-1, -1 - positions)


def _from_uniform(q: Quantized, p: UniformCodes) -> Float[Tensor, " b"]:
    """The number of positions times ln K (van den Oord et al. 2017, section 3.2)."""
    return -p.log_prob(q.mean)


_kl: Any = register_kl  # untyped in torch
_kl(Quantized, UniformCodes)(_from_uniform)


class Codes(NamedTuple):
    """The codes of some vectors, their numbers in the codebook, and each vector's penalty."""

    codes: Float[Tensor, "n c"]
    """With a gradient to the vectors."""
    indices: Int[Tensor, " n"]
    penalty: Float[Tensor, " n"] | None = None


class QuantizedPosterior(Posterior):
    """The encoder's output, replaced by codes of a codebook: of a map in each position, of a vector as a whole.

    The prior is `CodesPrior`, since other densities do not suit codes that are discrete.
    """

    outputs: ClassVar[tuple[str, ...]] = ("mean", "indices")
    is_spatial = True
    is_quantized = True

    def with_channels(self, count: int) -> str:
        """The words that choose codes of the same positions with this many channels, for messages."""
        _, *sides = self.latent_shape
        return f"latent.shape=[{','.join(map(str, (count, *sides)))}]" if sides else f"latent.dim={count}"

    @property
    @abstractmethod
    def codebook(self) -> Float[Tensor, "k c"]:
        """All codes."""

    @abstractmethod
    def quantize(self, vectors: Float[Tensor, "n c"]) -> Codes:
        """Quantise vectors, in 32 bits or more; a codebook learns here, in training only."""

    def num_parameters(self, latent_shape: tuple[int, ...]) -> int:
        """One value for each dimension."""
        return math.prod(latent_shape)

    def forward(self, parameters: Float[Tensor, "b p"]) -> Quantized:
        """The codes of a batch."""
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        channels, *sides = self.latent_shape
        count = math.prod(sides)
        vectors = parameters.reshape(-1, channels, count).transpose(1, 2).reshape(-1, channels)
        if vectors.is_meta:
            indices = torch.empty(len(vectors), dtype=torch.long)
            found = Codes(vectors, indices, vectors[:, 0] if self.has_penalty else None)
        else:
            with in_32_bits(vectors.device):
                found = self.quantize(vectors)
        return Quantized(
            found.codes.reshape(-1, count, channels).transpose(1, 2).reshape(-1, *self.latent_shape),
            found.indices.reshape(-1, *sides),
            None if found.penalty is None else found.penalty.reshape(-1, count).sum(1),
            len(self.codebook),
        )
