"""`likelihood=logistic`: each pixel is one of 256 levels, by a discretised logistic distribution."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints
from torch.nn.functional import logsigmoid, softplus

from vae_lab.model.distributions import bounded
from vae_lab.model.interfaces import Likelihood

START = 0.1
"""The scale at the start; a logistic distribution of this scale has a standard deviation of 0.18."""

LOG_BOUNDS = (-7.0, 3.0)
"""Bounds of the logarithm of the scale; the lower one is a quarter of a level."""


class LogisticLikelihood(Likelihood):
    """P(x | z) = F((x + ½ₗ − μ)/s) − F((x − ½ₗ − μ)/s) in each pixel, for half a level ½ₗ and the logistic function F.

    Levels 0 and 255 take the tails (Kingma et al. 2016; Salimans et al. 2017). The decoder's output o gives the
    location μ = ½ + o/4, which may lie outside [0, 1]: pure black and white are likely then.

    Args:
        image_shape: channels, height and width of the images.
        scale: s: `learned`, one number that is trained with the networks, or `per_pixel`, from a second set of channels
            of the decoder.
    """

    data: ClassVar = "levels"

    def __init__(self, image_shape: Sequence[int], *, scale: Literal["learned", "per_pixel"] = "learned") -> None:
        super().__init__(image_shape)
        self.log_scale = nn.Parameter(torch.tensor(START).log()) if scale == "learned" else None

    def channels(self, image_channels: int) -> int:
        """The channels of the images; twice as many for `per_pixel`."""
        return image_channels * (2 if self.log_scale is None else 1)

    def forward(self, parameters: Float[Tensor, "b p h w"]) -> Distribution:
        """Distributions of images, in at least 32 bits."""
        parameters = parameters.float() if parameters.element_size() < 4 else parameters
        if self.log_scale is None:
            parameters, log_scale = parameters.chunk(2, dim=1)
            log_scale = log_scale + math.log(START)
        else:
            log_scale = self.log_scale
        scale = bounded(log_scale, LOG_BOUNDS).exp()
        return Independent(DiscretizedLogistic(0.5 + parameters / 4, scale), 3, validate_args=False)


class DiscretizedLogistic(Distribution):
    """Probabilities of the levels 0, 1/255, …, 1.

    Args:
        location: any shape.
        scale: a shape that broadcasts to it.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.unit_interval

    def __init__(self, location: Float[Tensor, "..."], scale: Float[Tensor, "..."]) -> None:
        self.location, self.scale = location, scale
        super().__init__(location.shape, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """The mean of the logistic distribution with its tails moved to 0 and 1; at most half a level off."""
        to_black, to_white = self.location / self.scale, (self.location - 1) / self.scale
        return (self.scale * (softplus(to_black) - softplus(to_white))).clamp(0, 1)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        # F(a) − F(b) = F(a)·F(−b)·(1 − e^(b − a)), in which nothing cancels
        value = (value * 255).round() / 255
        upper, lower = (
            (value + 0.5 / 255 - self.location) / self.scale,
            (value - 0.5 / 255 - self.location) / self.scale,
        )
        to_upper, from_lower = logsigmoid(upper), logsigmoid(-lower)
        inside = to_upper + from_lower + torch.log(-torch.expm1(-1 / (255 * self.scale)))
        return torch.where(value <= 0, to_upper, torch.where(value >= 1, from_lower, inside))

    def sample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Levels, by rounding samples of the logistic distribution."""
        shape = (*sample_shape, *self.location.shape)
        u = torch.rand(shape, dtype=self.location.dtype, device=self.location.device).clamp(1e-7, 1 - 1e-7)
        return ((self.location + self.scale * torch.logit(u)) * 255).round().clamp(0, 255).detach() / 255
