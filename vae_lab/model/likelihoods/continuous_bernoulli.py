"""`likelihood=continuous_bernoulli`: a density on [0, 1] with the loss of the Bernoulli distribution, normalised."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from vae_lab.model.interfaces import HALF_LEVEL, Likelihood

NEAR = 0.1
"""Below this |η| the functions are computed from their series, whose error is then below 1e-9."""


class ContinuousBernoulliLikelihood(Likelihood):
    """p(x | z) = Π C(λᵢ) λᵢ^xᵢ (1 − λᵢ)^(1 − xᵢ) on [0, 1] (Loaiza-Ganem & Cunningham 2019).

    The decoder puts out the log-odds of λ. The mean is not λ but nearer to ½.

    Args:
        image_shape: channels, height and width of the images.
    """

    data: ClassVar = "real"

    def forward(self, parameters: Float[Tensor, "b c h w"]) -> Distribution:
        """Distributions of images from their log-odds, in at least 32 bits."""
        logits = parameters.float() if parameters.element_size() < 4 else parameters
        return Independent(ContinuousBernoulli(logits), 3, validate_args=False)

    def log_masses(self, x: Distribution, images: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Log of the density's integral over each level's part of [0, 1]: w · p(m) · sinh(s)/s for s = ηw/2.

        The part has the width w and the middle m; those of black and white are half as wide.
        """
        assert isinstance(x, Independent)
        continuous = x.base_dist
        low, high = (images - HALF_LEVEL).clamp(min=0), (images + HALF_LEVEL).clamp(max=1)
        width = high - low
        s = (continuous.logits * width / 2).abs()
        is_near = s < NEAR
        far = torch.where(is_near, 1.0, s)
        rise = torch.where(is_near, s**2 / 6 - s**4 / 180, far + torch.log(-torch.expm1(-2 * far) / (2 * far)))
        return (continuous.log_prob((low + high) / 2) + width.log() + rise).flatten(1).sum(1)


class ContinuousBernoulli(Distribution):
    """p(x) = exp(η·x) · η / (e^η − 1) on [0, 1], for log-odds η.

    torch's class of this name clamps λ, so that in 32 bits its log-density is wrong by up to a nat where |η| > 16, and
    its mean by 2e-4 near η = 0.

    Args:
        logits: η.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Float[Tensor, "..."]) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        """1 / (1 − e^−η) − 1/η."""
        eta, is_near = self._safe()
        size = eta.abs()
        far = torch.where(eta > 0, 1.0, -torch.exp(-size)) / -torch.expm1(-size) - 1 / eta
        near = 0.5 + self.logits / 12 - self.logits**3 / 720
        return torch.where(is_near, near, far)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        # log((e^η − 1)/η) = max(η, 0) + log(1 − e^−|η|) − log |η|, and near 0: η/2 + η²/24 − η⁴/2880
        eta, is_near = self._safe()
        size = eta.abs()
        far = eta.clamp(min=0) + torch.log(-torch.expm1(-size)) - torch.log(size)
        near = self.logits / 2 + self.logits**2 / 24 - self.logits**4 / 2880
        return self.logits * value - torch.where(is_near, near, far)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """The inverse of the distribution function, log(1 + u·(e^η − 1)) / η, at uniform u."""
        u = torch.rand((*sample_shape, *self.logits.shape), dtype=self.logits.dtype, device=self.logits.device)
        eta, is_near = self._safe()
        # For η > 0 by symmetry, so that e^η does not overflow.
        size = -eta.abs()
        low = torch.log1p(u * torch.expm1(size)) / size
        return torch.where(is_near, u + self.logits * u * (1 - u) / 2, torch.where(eta > 0, 1 - low, low)).clamp(0, 1)

    def _safe(self) -> tuple[Tensor, Tensor]:
        """η with those near 0 replaced, which would make gradients NaN, and which ones they are."""
        is_near = self.logits.abs() < NEAR
        return torch.where(is_near, 1.0, self.logits), is_near
