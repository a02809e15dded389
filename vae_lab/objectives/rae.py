"""`objective=rae`: a regularised autoencoder without noise."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vae_lab.config.base import NonNegative
from vae_lab.model.blocks.layers import in_32_bits
from vae_lab.model.vae import VAE
from vae_lab.objectives.base import Objective

POWER_ITERATIONS = 10


class Rae(Objective):
    """−log p(x | z) + β · ½‖z‖² + λ · (a regulariser of the decoder), for `posterior=point` (Ghosh et al. 2020).

    The paper's squared error is `likelihood=gaussian` with a number as `likelihood.sigma`. There is no KL divergence,
    and no bound in nats. Samples of the prior mean little, since nothing but `latent_norm`, ½‖z‖², draws codes to it:
    `metrics.samplers=true` measures samples of densities that are fitted to the codes, as the paper does.

    Args:
        beta: weight of ½‖z‖².
        regularizer: `gradient`, half the squared norm of the decoder's Jacobian, estimated with one random direction;
            `l2`, half the sum of the decoder's squared weights; `spectral`, half the sum of the squared largest
            singular values of its weight matrices (Yoshida & Miyato 2017); `none`.
        regularizer_weight: λ.
    """

    units: Mapping[str, str] = {
        "total": "nats per image",
        "reconstruction": "nats per image",
        "latent_norm": "squared length",
        "regularizer": "as its kind",
    }
    needs_density = False
    is_likelihood_trained = False

    def __init__(
        self,
        *,
        beta: NonNegative = 0.01,
        regularizer: Literal["none", "gradient", "l2", "spectral"] = "l2",
        regularizer_weight: NonNegative = 0.001,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.regularizer = regularizer
        self.regularizer_weight = regularizer_weight

    def forward(self, vae: VAE, images: Float[Tensor, "b c h w"], progress: float) -> dict[str, Float[Tensor, ""]]:
        _, z, x = vae(images)
        reconstruction = -x.log_prob(images).mean()
        latent_norm = 0.5 * z.flatten(1).square().sum(1).mean()
        regularizer = self._regularizer(vae, z)
        total = reconstruction + self.beta * latent_norm + self.regularizer_weight * regularizer
        return {
            "total": total,
            "reconstruction": reconstruction,
            "latent_norm": latent_norm,
            "regularizer": regularizer,
        }

    def _regularizer(self, vae: VAE, z: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
        if self.regularizer == "gradient":
            return squared_jacobian(vae, z)
        if self.regularizer == "l2":
            norms = [weight.square().sum() for weight in vae.decoder.parameters()]
        elif self.regularizer == "spectral":
            norms = [largest_singular_value(matrix).square() for matrix in _matrices(vae.decoder)]
        else:
            norms = []
        return 0.5 * sum(norms, z.new_zeros(()))

    def check(self, vae: VAE) -> None:
        """The posterior must be a point."""
        if vae.posterior.has_density:
            raise ValueError(
                f"rae has no KL term, so that nothing keeps the noise of {type(vae.posterior).__name__} from "
                "vanishing; take posterior=point, or objective=elbo"
            )


def squared_jacobian(vae: VAE, z: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """½‖∂x̂/∂z‖², averaged over the codes: E ‖vᵀ J‖² = ‖J‖² for v ~ N(0, I) (Hutchinson).

    The decoder is run again, with an attention that has second derivatives. Works without gradients, too.
    """
    with torch.inference_mode(False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        codes = z.clone() if z.requires_grad else z.detach().clone().requires_grad_()
        mean = vae.likelihood(vae.decoder(codes)).mean
        (gradient,) = torch.autograd.grad(mean, codes, torch.randn_like(mean), create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(1).mean()


def _matrices(module: nn.Module) -> Iterator[Float[Tensor, "m n"]]:
    return (weight.flatten(1) for weight in module.parameters() if weight.dim() > 1)


def largest_singular_value(matrix: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """The largest singular value by power iteration, a little below the true one; its gradient is that of uᵀ M v."""
    with in_32_bits(matrix.device):
        with torch.no_grad():
            u = matrix.new_ones(len(matrix))
            for _ in range(POWER_ITERATIONS):
                v = nn.functional.normalize(matrix.T @ u, dim=0)
                u = nn.functional.normalize(matrix @ v, dim=0)
        return u @ matrix @ v
