"""Samplers of codes beyond the prior, fitted to a trained model's codes of its training images.

Samples of a VAE are decoded from the prior, N(0, I). What its decoder was trained on is the aggregate posterior q(z),
the mean of the posteriors of the training images, which rarely is N(0, I). Ghosh et al. 2020, "From Variational to
Deterministic Autoencoders", fit a density to the codes after training (ex-post density estimation): a Gaussian with
full covariance, or a mixture of ten.

Codes are one sample of each image's posterior, not its mean: q(z) is made of such samples. Means lack the variance of
the posteriors, which in a dimension that says nothing about the images is all there is.
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
"""The same where no code differs from another."""

COMPONENTS = 10
"""Gaussians of a mixture, as many as Ghosh et al. take."""

FLOOR = 1e-6
"""What is added to each variance, as a share of the codes' mean variance: of fewer codes than dimensions, or with a
dimension that never varies, a covariance would have no root."""


class Sampler(NamedTuple):
    """A mixture of Gaussians with full covariances over codes; of one component it is a Gaussian. Lies on the CPU."""

    weights: Float64[Tensor, " k"]
    """Shares of the components."""
    means: Float64[Tensor, "k z"]
    roots: Float64[Tensor, "k z z"]
    """Lower triangular: a covariance is root · rootᵀ."""

    def sample(self, n: int, seed: int | None = None) -> Float[Tensor, "n z"]:
        """Codes to be decoded, in 32 bits on the CPU.

        Args:
            n: how many.
            seed: of the random stream; without, torch's own goes on.

        Raises:
            ValueError: for less than one.
        """
        return self.draw(n, None if seed is None else torch.Generator().manual_seed(seed))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n z"]:
        """As `sample`, from the stream of a generator on the CPU."""
        if n < 1:
            raise ValueError(f"n must be at least 1, but is {n}")
        place = torch.device("cpu")  # whatever the default device is
        noise = torch.randn(n, self.means.shape[1], generator=generator, device=place, dtype=torch.float64)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.empty_like(noise)
        for number in range(len(self.weights)):
            own = component == number
            z[own] = self.means[number] + noise[own] @ self.roots[number].T
        return z.float()


def fit(
    model: VAE, images: Shaped[Tensor, "..."], kind: Kind = "mixture", seed: int = 0, components: int = COMPONENTS
) -> Sampler:
    """A sampler of the codes that a model has of images, to be decoded: `model.decode(sampler.sample(64, seed=1))`.

    Args:
        model: a trained model in evaluation mode.
        images: those that it was trained on, (n, c, h, w) in [0, 1].
        kind: `gaussian`, one with full covariance, or `mixture` of several.
        seed: of the samples of the posteriors and of the mixture's start.
        components: Gaussians of a mixture.

    Raises:
        ValueError: as `VAE.encode` and `fit_codes`.
    """
    _check(kind, components)
    generator = torch.Generator().manual_seed(seed)
    parts = torch.split(images, AT_ONCE) if isinstance(images, Tensor) and images.dim() else (images,)
    codes = torch.cat([posterior_samples(model.encode(some), generator) for some in parts])
    return fit_codes(codes, kind, seed, components)


@torch.no_grad()
def posterior_samples(posterior: Distribution, generator: torch.Generator) -> Float[Tensor, "n ..."]:
    """One z of each posterior, the same on every device."""
    with drawn_from(generator):
        return posterior.sample()


def fit_codes(
    codes: Float[Tensor, "n z"], kind: Kind = "mixture", seed: int = 0, components: int = COMPONENTS
) -> Sampler:
    """A sampler of codes like these.

    The Gaussian has their mean and covariance; the mixture is scikit-learn's `GaussianMixture`, which starts at the
    clusters of k-means. Equal codes and seeds give equal samplers.

    Args:
        codes: one an image.
        kind: `gaussian` or `mixture`.
        seed: of the mixture's start.
        components: Gaussians of a mixture.

    Raises:
        ValueError: for a kind that does not exist, codes that are not a table of finite numbers, or fewer of them than
            two or than there are components.
    """
    _check(kind, components)
    table = _checked(codes, least_codes(kind, components))
    floor: float = max(FLOOR * float(table.var(0).mean()), LEAST_FLOOR)
    if kind == "gaussian":
        centred = table - table.mean(0)
        covariance = centred.T @ centred / len(table) + floor * np.eye(table.shape[1])
        weights, means, covariances = np.ones(1), table.mean(0)[None], covariance[None]
    else:
        weights, means, covariances = _mixture(table, components, seed, floor)
    roots = np.linalg.cholesky(covariances)
    return Sampler(*map(torch.from_numpy, (weights, means, roots)))


def _mixture(codes: np.ndarray, components: int, seed: int, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, covariance_type="full", reg_covar=floor, random_state=seed)
    with warnings.catch_warnings():
        # Codes that repeat make fewer clusters; a hundred steps that are not enough come near enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(codes)
    return mixture.weights_, mixture.means_, mixture.covariances_


def least_codes(kind: Kind = "mixture", components: int = COMPONENTS) -> int:
    """How many codes a sampler needs."""
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
    table = codes.detach().cpu().double().numpy()
    if not np.isfinite(table).all():
        raise ValueError("codes must be finite numbers, but some are not")
    return table
