"""`prior=flow`: N(0, I), bent by a normalising flow that is trained."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from vae_lab.config.base import Width
from vae_lab.model.distributions import StandardNormal
from vae_lab.model.flows import Couplings, Flow
from vae_lab.model.interfaces import Prior


class FlowPrior(Prior):
    """p(z) = N(f(z); 0, I)·|det ∂f/∂z|, where f is a flow of coupling layers (Dinh et al. 2017; Durkan et al. 2019).

    Sampling and density each cost one pass through the networks of the layers.

    Args:
        latent_shape: the shape of one z.
        kind: the transformation of each dimension: `spline`, a monotonic rational-quadratic spline between −5 and 5, or
            `affine`, as in RealNVP.
        layers: number of coupling layers.
        width: width of the hidden layers of their networks.
        bins: number of bins of a spline.
    """

    origin: torch.Tensor

    def __init__(
        self,
        latent_shape: Sequence[int],
        *,
        kind: Literal["spline", "affine"] = "spline",
        layers: Annotated[int, Field(ge=1, le=64)] = 4,
        width: Width = 64,
        bins: Annotated[int, Field(ge=2, le=256)] = 8,
    ) -> None:
        super().__init__(latent_shape)
        self.register_buffer("origin", torch.zeros(self.latent_shape), persistent=False)
        self.couplings = Couplings(math.prod(self.latent_shape), layers, 0, width, kind, bins)

    def forward(self) -> Flow:
        """The distribution of one z."""
        return Flow(StandardNormal(self.origin), self.couplings)
