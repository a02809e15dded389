"""`likelihood=gaussian`: each pixel is normal around the decoder's mean."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.special import log_ndtr

from vae_lab.config.base import Positive
from vae_lab.model.distributions import bounded
from vae_lab.model.interfaces import HALF_LEVEL, Likelihood

START = 0.3
"""σ that is learned starts here, near the spread of grey levels: from a larger one posteriors collapse at first."""

LOG_BOUNDS = (-6.0, 3.0)
"""Bounds of ln σ for `optimal` and `per_pixel`. The lower one, σ = 0.0025, is that of the paper's code."""

MOMENTUM = 0.1
"""The weight of a batch in the running mean of the squared error, as in torch's batch normalisation."""

NARROW = 0.02
"""Half a level in units of σ below which a level's probability comes from its density and the curvature of that."""


class GaussianLikelihood(Likelihood):
    """p(x | z) = N(x; x̂, σ²) in each pixel.

    Args:
        image_shape: channels, height and width of the images.
        sigma: σ, in grey levels from 0 to 1. `learned` trains one number with the networks. With `optimal`, σ² is the
            mean squared error of each training batch, at which its likelihood is highest (σ-VAE, Rybkin et al. 2021);
            held-out images are measured with a running mean of it, since their own error would not make a density.
            With `per_pixel` the decoder puts out a second set of channels, log σ of each pixel. In a configuration
            `auto` is the σ that β implies under `mse_kl`, and `learned` elsewhere. None, for β = 0, means that there is
            no likelihood: σ is 1.
        link: maps the decoder's output to x̂: `sigmoid`, into [0, 1], or `identity`.
    """

    data: ClassVar = "real"
    squared_error: Tensor

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        sigma: Positive | Literal["auto", "from_beta", "optimal", "learned", "per_pixel"] | None = "auto",
        link: Literal["sigmoid", "identity"] = "sigmoid",
    ) -> None:
        super().__init__(image_shape)
        if sigma == "from_beta":
            raise ValueError("sigma is from_beta, which a configuration replaces by a number; give the number")
        self.link = link
        self.kind = sigma if isinstance(sigma, str) else "number"
        self.log_sigma = nn.Parameter(torch.tensor(START).log()) if sigma in ("auto", "learned") else None
        self.sigma = float(sigma) if isinstance(sigma, int | float) else 1.0
        self.needs_whole_batch = sigma == "optimal"
        if self.needs_whole_batch:
            self.register_buffer("squared_error", torch.tensor(START).square())

    def channels(self, image_channels: int) -> int:
        """The channels of the images; twice as many for `per_pixel`."""
        return image_channels * (2 if self.kind == "per_pixel" else 1)

    def forward(self, parameters: Float[Tensor, "b p h w"]) -> Distribution:
        """Distributions of images around their means, in at least 32 bits."""
        mean, log_sigma = parameters.chunk(2, dim=1) if self.kind == "per_pixel" else (parameters, None)
        mean = torch.sigmoid(mean) if self.link == "sigmoid" else mean
        mean = mean.float() if mean.element_size() < 4 else mean
        sigma: float | Tensor
        if log_sigma is not None:
            sigma = bounded(log_sigma.to(mean) + math.log(START), LOG_BOUNDS).exp()
        elif self.kind == "optimal":
            if self.training:
                return _BestNormal(mean, self.squared_error)
            sigma = _root(self.squared_error)
        else:
            sigma = self.sigma if self.log_sigma is None else self.log_sigma.exp()
        return Independent(Normal(mean, sigma, validate_args=False), 3, validate_args=False)

    def log_masses(self, x: Distribution, images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"] | None:
        """Log Φ(u + h) − Φ(u − h), summed over pixels, for u = (x − x̂) / σ and half a level h = ½ / 255σ.

        None for a small σ on MPS, where torch has no log Φ.
        """
        assert isinstance(x, Independent)
        mean, sigma = x.base_dist.mean, x.base_dist.stddev
        if self.kind != "per_pixel" and NARROW * sigma.flatten()[0] > HALF_LEVEL:
            # log 2hφ(u) + h²(u² − 1)/6 + O(h⁴), for a ninth of the time
            log_density: Tensor = x.log_prob(images)  # type: ignore[no-untyped-call]
            one, pixels = sigma.flatten()[0], images[0].numel()
            squares = -2 * (log_density + pixels * (one.log() + 0.5 * math.log(2 * math.pi)))
            return log_density - pixels * math.log(255) + (HALF_LEVEL / one).square() / 6 * (squares - pixels)
        if images.device.type == "mps":
            return None
        u, h = ((images - mean) / sigma).abs(), HALF_LEVEL / sigma
        upper, lower = log_ndtr(h - u), log_ndtr(-h - u)  # of the tail, in which nothing cancels
        return (upper + torch.log(-torch.expm1(lower - upper))).flatten(1).sum(1)


def _root(squared_error: Float[Tensor, ""]) -> Float[Tensor, ""]:
    return squared_error.sqrt().clamp(min=math.exp(LOG_BOUNDS[0]))


class _BestNormal(Distribution):
    """Normal distributions around the means, whose variance is the mean squared error of the images they are asked for.

    Args:
        mean: (b, c, h, w).
        running: the running mean of the squared error, which `log_prob` updates.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, mean: Float[Tensor, "b c h w"], running: Float[Tensor, ""]) -> None:
        self._mean, self.running = mean, running
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "b c h w"]:
        return self._mean

    def log_prob(self, value: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        # The derivative by σ is 0 at the best σ, so it takes no part in the gradient.
        error = (value - self._mean).detach().square().mean()
        self.running.lerp_(error.to(self.running), MOMENTUM)
        best: Distribution = Independent(Normal(self._mean, _root(error), validate_args=False), 3, validate_args=False)
        return best.log_prob(value)
