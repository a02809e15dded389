"""Distributions over latent codes, and KL divergences between them in nats."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints, kl_divergence, register_kl

from vae_lab import compat


class DiagonalNormal(Distribution):
    """Normal distributions with diagonal covariance, given by mean and log-variance.

    Args:
        mean: (*batch, z).
        log_variance: (*batch, z).
    """

    arg_constraints = {"mean": constraints.real_vector, "log_variance": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Float[Tensor, "... z"], log_variance: Float[Tensor, "... z"]) -> None:
        self._mean, self.log_variance = mean, log_variance
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "... z"]:
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "... z"]:
        return self.log_variance.exp()

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "... z"]:
        """Mean + σ·ε, ε ~ N(0, I) (Kingma & Welling 2014)."""
        shape = (*sample_shape, *self.mean.shape)
        noise = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_prob(self, value: Float[Tensor, "... z"]) -> Float[Tensor, "..."]:
        squared = (value - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squared + self.log_variance + math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Float[Tensor, "..."]:
        return 0.5 * (self.log_variance + math.log(2 * math.pi * math.e)).sum(-1)


def bounded(values: Float[Tensor, "..."], bounds: Sequence[float] | None) -> Float[Tensor, "..."]:
    """Values moved to the nearer of two bounds if they lie outside; None changes nothing.

    The gradient is that of the values as they were. A clamp's is zero outside, where a value would stay for ever.
    """
    return values if bounds is None else values + (values.clamp(*bounds) - values).detach()


class StandardNormal(Distribution):
    """N(0, I).

    Args:
        origin: zeros of the event shape; samples have the same type and device.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True

    def __init__(self, origin: Float[Tensor, "..."]) -> None:
        self.origin = origin
        super().__init__(torch.Size(), origin.shape, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        return self.origin

    @property
    def variance(self) -> Float[Tensor, "..."]:
        return torch.ones_like(self.origin)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return torch.randn((*sample_shape, *self.origin.shape), dtype=self.origin.dtype, device=self.origin.device)

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        events = tuple(range(-self.origin.dim(), 0))
        return -0.5 * (value.square() + math.log(2 * math.pi)).sum(events)


class Point(Distribution):
    """All probability at one code, which is the mean and every sample. It has no density.

    Args:
        mean: (*batch, z).
    """

    arg_constraints = {"mean": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Float[Tensor, "... z"]) -> None:
        self._mean = mean
        super().__init__(mean.shape[:-1], mean.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "... z"]:
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "... z"]:
        return torch.zeros_like(self._mean)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "... z"]:
        return self._mean.expand((*sample_shape, *self._mean.shape))


@contextmanager
def unvalidated() -> Iterator[None]:
    """A context in which torch's distributions do not check the values of their arguments.

    The check would wait for the device in every step, and the meta device has no values.
    """
    before = compat.are_distributions_validated()
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


# --- KL divergences ----------------------------------------------------------------------------------------

_kl: Any = register_kl  # untyped in torch
ByDimension = Callable[[Any, Any], Tensor]
_BY_DIMENSION: dict[tuple[type, type], ByDimension] = {}


def factorised(q: type[Distribution], p: type[Distribution]) -> Callable[[ByDimension], ByDimension]:
    """Register a function as KL(q ‖ p) per latent dimension, and its sum as torch's rule for the two classes."""

    def register(by_dimension: ByDimension) -> ByDimension:
        _BY_DIMENSION[q, p] = by_dimension
        _kl(q, p)(lambda one, other: by_dimension(one, other).flatten(len(one.batch_shape)).sum(-1))
        return by_dimension

    return register


@factorised(DiagonalNormal, StandardNormal)
def _from_standard(q: DiagonalNormal, p: StandardNormal) -> Float[Tensor, "... z"]:
    """Kingma & Welling 2014, appendix B."""
    return 0.5 * (q.mean.square() + q.log_variance.exp() - q.log_variance - 1)


@factorised(DiagonalNormal, DiagonalNormal)
def _from_diagonal(q: DiagonalNormal, p: DiagonalNormal) -> Float[Tensor, "... z"]:
    ratio = q.log_variance - p.log_variance
    return 0.5 * ((q.mean - p.mean).square() * torch.exp(-p.log_variance) + ratio.exp() - ratio - 1)


def _full_from_standard(q: MultivariateNormal, p: StandardNormal) -> Float[Tensor, "..."]:
    trace = q.scale_tril.square().sum((-2, -1))
    log_determinant = 2 * q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (trace + q.mean.square().sum(-1) - log_determinant - q.event_shape[0])


_kl(MultivariateNormal, StandardNormal)(_full_from_standard)


class Divergence(NamedTuple):
    """KL(q(z | x) ‖ p(z)) of each image in nats, (b,), and whether it is exact or a one-sample estimate."""

    nats: Float[Tensor, " b"]
    is_exact: bool


def divergence(q: Distribution, p: Distribution, z: Float[Tensor, "b ..."]) -> Divergence:
    """The KL divergence: exact where torch has a rule for the pair, else log q(z | x) − log p(z) at each image's z."""
    try:
        return Divergence(kl_divergence(q, p), True)
    except NotImplementedError:
        return Divergence(q.log_prob(z) - p.log_prob(z), False)


def by_dimension(q: Distribution, p: Distribution) -> Float[Tensor, "b ..."] | None:
    """The KL divergence of each latent dimension in nats; None if it is no sum over dimensions."""
    rule = _BY_DIMENSION.get((type(q), type(p)))
    return None if rule is None else rule(q, p)
