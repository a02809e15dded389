"""Samplers of latent codes other than the prior, fitted to a trained model's codes of its training images.

A VAE decodes samples of the prior, N(0, I). Its decoder was trained on the aggregate posterior q(z), the mean of the
posteriors of the training images, which is rarely N(0, I). Ghosh et al. 2020, "From Variational to Deterministic
Autoencoders", fit a density to the codes after training (ex-post density estimation): a Gaussian with full covariance,
or a mixture of ten.

Each code is one sample of an image's posterior, not its mean, because q(z) is the distribution of such samples. Means
lack the variance of the posteriors, which is the whole variance in a dimension that carries no information.
"""

import warnings
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import AT_ONCE, VAE

Kind = Literal["gaussian", "mixture"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LEAST_FLOOR = 1e-12
"""Lower bound of the term that `FLOOR` gives, for codes that are all equal."""

COMPONENTS = 10
"""Number of Gaussians in a mixture, as in Ghosh et al."""

MOST_FITTED = 1024
"""Latent dimensions up to which `metrics=full` fits samplers: a mixture takes minutes there, and cubic time beyond."""

FLOOR = 1e-6
"""Added to each variance, as a fraction of the codes' mean variance. Without it a covariance would have no Cholesky
factor if there are fewer codes than dimensions or a dimension never varies."""


class Sampler(NamedTuple):
    """A mixture of Gaussians with full covariances over codes, on the CPU; with one component, a Gaussian."""

    weights: Float64[Tensor, " k"]
    """Weights of the components; their sum is 1."""
    means: Float64[Tensor, "k z"]
    roots: Float64[Tensor, "k z z"]
    """Lower triangular: a covariance is root · rootᵀ."""

    def sample(self, n: int, seed: int | None = None) -> Float[Tensor, "n z"]:
        """Draw codes to decode, in 32 bits on the CPU.

        Args:
            n: number of codes.
            seed: seed of the random stream; None uses torch's global generator.

        Raises:
            ValueError: if `n` is less than 1.
        """
        return self.draw(n, None if seed is None else torch.Generator().manual_seed(seed))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n z"]:
        """Like `sample`, but from a generator on the CPU."""
        if n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        cpu = torch.device("cpu")  # the default device may be another
        noise = torch.randn(n, self.means.shape[1], generator=generator, device=cpu, dtype=torch.float64)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.empty_like(noise)
        for number in range(len(self.weights)):
            own = component == number
            z[own] = self.means[number] + noise[own] @ self.roots[number].T
        return z.float()


def fit(
    model: VAE, images: Shaped[Tensor, "..."], kind: Kind = "mixture", seed: int = 0, components: int = COMPONENTS
) -> Sampler:
    """Fit a sampler to a model's codes of images; use it as `model.decode(sampler.sample(64, seed=1))`.

    Args:
        model: a trained model in evaluation mode.
        images: the training images, (n, c, h, w) in [0, 1].
        kind: `gaussian`, with full covariance, or `mixture`, of several such Gaussians.
        seed: seed of the posterior samples and of the mixture's initialisation.
        components: number of Gaussians in a mixture.

    Raises:
        ValueError: see `VAE.encode` and `fit_codes`.
    """
    _check(kind, components)
    generator = torch.Generator().manual_seed(seed)
    parts = torch.split(images, AT_ONCE) if isinstance(images, Tensor) and images.dim() else (images,)
    codes = torch.cat([posterior_samples(model.encode(some), generator) for some in parts])
    return fit_codes(codes, kind, seed, components)


@torch.no_grad()
def posterior_samples(posterior: Distribution, generator: torch.Generator) -> Float[Tensor, "n ..."]:
    """Draw one z of each posterior, the same on every device."""
    with drawn_from(generator):
        return posterior.sample()


def fit_codes(
    codes: Float[Tensor, "n z"], kind: Kind = "mixture", seed: int = 0, components: int = COMPONENTS
) -> Sampler:
    """Fit a sampler to codes.

    The Gaussian has the mean and covariance of the codes. The mixture is scikit-learn's `GaussianMixture`, initialised
    with k-means. Equal codes and seeds give equal samplers.

    Args:
        codes: one per image.
        kind: `gaussian` or `mixture`.
        seed: seed of the mixture's initialisation.
        components: number of Gaussians in a mixture.

    Raises:
        ValueError: if the kind does not exist, the codes are not a matrix of finite numbers, or there are fewer codes
            than two or than components.
    """
    _check(kind, components)
    matrix = _checked(codes, least_codes(kind, components))
    floor: float = max(FLOOR * float(matrix.var(0).mean()), LEAST_FLOOR)
    if kind == "gaussian":
        centred = matrix - matrix.mean(0)
        covariance = centred.T @ centred / len(matrix) + floor * np.eye(matrix.shape[1])
        weights, means, covariances = np.ones(1), matrix.mean(0)[None], covariance[None]
    else:
        weights, means, covariances = _mixture(matrix, components, seed, floor)
    roots = np.linalg.cholesky(covariances)
    return Sampler(*map(torch.from_numpy, (weights, means, roots)))


def _mixture(codes: np.ndarray, components: int, seed: int, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, covariance_type="full", reg_covar=floor, random_state=seed)
    with warnings.catch_warnings():
        # Repeated codes give fewer clusters; without convergence after 100 steps the fit is close enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(codes)
    return mixture.weights_, mixture.means_, mixture.covariances_


def least_codes(kind: Kind = "mixture", components: int = COMPONENTS) -> int:
    """The fewest codes that a sampler can be fitted to."""
    return 2 if kind == "gaussian" else max(2, components)


def _check(kind: str, components: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be {' or '.join(map(repr, KINDS))}, but is {kind!r}")
    if components < 1:
        raise ValueError(f"components must be at least 1, but is {components}")


def _checked(codes: Tensor, least: int) -> np.ndarray:
    if codes.dim() != 2 or not codes.shape[1]:
        raise ValueError(f"codes must have shape (n, z), but got {tuple(codes.shape)}")
    if len(codes) < least:
        why = f", one for each of {least} components" if least > 2 else ""
        raise ValueError(
            f"codes must be at least {least}{why}, but there {'is' if len(codes) == 1 else 'are'} {len(codes)}"
        )
    matrix = codes.detach().cpu().double().numpy()
    if not np.isfinite(matrix).all():
        raise ValueError("codes must be finite numbers, but some are not")
    return matrix
