"""Model output to named loss terms: pure functions."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from vae_lab.model.vae import Output

TERMS = ("total", "reconstruction", "kl")
"""The terms that every objective returns, in this order; `total` is what is minimised."""


def mse_kl(output: Output, images: Float[Tensor, "b c h w"], *, beta: float) -> dict[str, Float[Tensor, ""]]:
    """Squared error and KL divergence, each a mean, the latter weighted by `beta` (Higgins et al. 2017).

    `reconstruction` is the mean over images and pixels, `kl` the mean over images and latent dimensions in nats;
    total = reconstruction + beta · kl.
    """
    reconstruction = mse_loss(output.reconstruction.to(images.dtype), images)
    kl = output.kl.mean()
    return {"total": reconstruction + beta * kl, "reconstruction": reconstruction, "kl": kl}
