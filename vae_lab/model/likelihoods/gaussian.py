"""`likelihood=gaussian`: each pixel is normal around the decoder's mean."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lab.config.base import Positive
from vae_lab.model.interfaces import Likelihood

START = 0.3
"""σ that is learned starts here, near the spread of grey levels: from a larger one posteriors collapse at first."""


class GaussianLikelihood(Likelihood):
    """p(x | z) = N(x; x̂, σ²·1), one σ for all pixels.

    Args:
        image_shape: channels, height and width of the images.
        sigma: σ, in grey levels from 0 to 1; `learned` trains one number with the networks. In a configuration `auto`
            is the σ that β implies under `mse_kl`, and `learned` elsewhere. None, for β = 0, means that there is no
            likelihood: σ is 1.
        link: maps the decoder's output to x̂: `sigmoid`, into [0, 1], or `identity`.
    """

    data: ClassVar = "real"

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        sigma: Positive | Literal["auto", "from_beta", "learned"] | None = "auto",
        link: Literal["sigmoid", "identity"] = "sigmoid",
    ) -> None:
        super().__init__(image_shape)
        if sigma == "from_beta":
            raise ValueError("sigma is from_beta, which a configuration replaces by a number; give the number")
        self.link = link
        self.log_sigma = nn.Parameter(torch.tensor(START).log()) if sigma in ("auto", "learned") else None
        self.sigma = float(sigma) if isinstance(sigma, int | float) else 1.0

    def forward(self, parameters: Float[Tensor, "b c h w"]) -> Distribution:
        """Distributions of images around their means, in at least 32 bits."""
        mean = torch.sigmoid(parameters) if self.link == "sigmoid" else parameters
        mean = mean.float() if mean.element_size() < 4 else mean
        sigma = self.sigma if self.log_sigma is None else self.log_sigma.exp()
        return Independent(Normal(mean, sigma, validate_args=False), 3, validate_args=False)
