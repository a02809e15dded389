"""Distributions over codes of two levels: z = (top, bottom), where the bottom one depends on the top one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from vae_lab.model.distributions import DiagonalNormal, bounded


class Hierarchy(Distribution):
    """p(top) · p(bottom | top), over the vector that holds both.

    `mean` is the top's mean and the mean of the bottom there: as for a flow, the middle, and not the expected value.

    Args:
        top: over vectors.
        bottom: gives the distributions of the bottom vectors, (*batch, bottom), at top vectors, (*batch, top).
        size: the length of a bottom vector.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, top: Distribution, bottom: Callable[[Tensor], Distribution], size: int) -> None:
        self.top, self.bottom = top, bottom
        self.has_rsample = top.has_rsample
        super().__init__(top.batch_shape, torch.Size([top.event_shape[0] + size]), validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "... z"]:
        top = self.top.mean
        return torch.cat([top, self.bottom(top).mean], -1)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "... z"]:
        top = self.top.rsample(sample_shape)
        return torch.cat([top, self.bottom(top).rsample()], -1)

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "... z"]:
        with torch.no_grad():
            top = self.top.sample(sample_shape)
            return torch.cat([top, self.bottom(top).sample()], -1)

    def log_prob(self, value: Float[Tensor, "... z"]) -> Float[Tensor, "..."]:
        top, bottom = value.tensor_split([self.top.event_shape[0]], -1)
        return self.top.log_prob(top) + self.bottom(top).log_prob(bottom)


class Conditional(nn.Module):
    """Two dense layers, each multiplied by a gate, from a vector to a diagonal Gaussian over another.

    Args:
        inputs: the length of the given vector.
        outputs: the length of the other.
        width: of the layers.
        log_variance: bounds of ln σ²; None for none.
    """

    def __init__(self, inputs: int, outputs: int, width: int, log_variance: Sequence[float] | None) -> None:
        super().__init__()
        self.log_variance = log_variance
        self.network = nn.Sequential(
            nn.Linear(inputs, 2 * width), nn.GLU(),
            nn.Linear(width, 2 * width), nn.GLU(),
            nn.Linear(width, 2 * outputs),
        )  # fmt: skip

    def forward(self, given: Float[Tensor, "... i"]) -> DiagonalNormal:
        """The distributions of the other vectors, in at least 32 bits."""
        parameters = self.network(given)
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        mean, log_variance = parameters.chunk(2, -1)
        return DiagonalNormal(mean, bounded(log_variance, self.log_variance))
