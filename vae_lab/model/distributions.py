"""Distributions over latent codes, and KL divergences between them in nats."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
    constraints,
    kl_divergence,
    register_kl,
)

from vae_lab import compat


class DiagonalNormal(Distribution):
    """Normal distributions with diagonal covariance, given by mean and log-variance.

    Args:
        mean: (*batch, *event).
        log_variance: (*batch, *event).
        events: number of event dimensions: 1 for vectors, 3 for maps.
    """

    arg_constraints = {"mean": constraints.real_vector, "log_variance": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Float[Tensor, "..."], log_variance: Float[Tensor, "..."], events: int = 1) -> None:
        self._mean, self.log_variance = mean, log_variance
        super().__init__(mean.shape[:-events], mean.shape[-events:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "..."]:
        return self.log_variance.exp()

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        """Mean + σ·ε, ε ~ N(0, I) (Kingma & Welling 2014)."""
        shape = (*sample_shape, *self.mean.shape)
        noise = torch.randn(shape, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        squared = (value - self.mean).square() * torch.exp(-self.log_variance)
        return -0.5 * (squared + self.log_variance + math.log(2 * math.pi)).sum(_events(self))

    def entropy(self) -> Float[Tensor, "..."]:
        return 0.5 * (self.log_variance + math.log(2 * math.pi * math.e)).sum(_events(self))


def _events(distribution: Distribution) -> tuple[int, ...]:
    """The event dimensions, counted from the last."""
    return tuple(range(-len(distribution.event_shape), 0))


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
        return -0.5 * (value.square() + math.log(2 * math.pi)).sum(_events(self))


class Point(Distribution):
    """All probability at one code, which is the mean and every sample. It has no density.

    Args:
        mean: (*batch, *event).
        events: number of event dimensions.
    """

    arg_constraints = {"mean": constraints.real_vector}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, mean: Float[Tensor, "..."], events: int = 1) -> None:
        self._mean = mean
        super().__init__(mean.shape[:-events], mean.shape[-events:], validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "..."]:
        return torch.zeros_like(self._mean)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return self._mean.expand((*sample_shape, *self._mean.shape))


class NormalMixture(MixtureSameFamily):
    """A mixture of Gaussians with diagonal covariance.

    The squared distances of codes from means are expanded into matrix products, which need no tensor of every code,
    component and dimension. Their terms cancel, so they are in 64 bits.

    Args:
        weights: of the components, batch shape () and k categories.
        components: batch shape (k,).
    """

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        components = self.component_distribution
        double = torch.float32 if value.device.type == "mps" else torch.float64  # which has no 64-bit numbers
        z = value.flatten(-len(self.event_shape)).to(double)
        assert isinstance(components, DiagonalNormal)
        mean, log_variance = (one.flatten(1).to(double) for one in (components.mean, components.log_variance))
        precision = torch.exp(-log_variance)
        weighted = mean * precision
        constant = (mean * weighted + log_variance + math.log(2 * math.pi)).sum(1)
        squared = z.square() @ precision.T - 2 * z @ weighted.T + constant
        logits: Tensor = self.mixture_distribution.logits
        return torch.logsumexp(logits - 0.5 * squared, -1).to(value.dtype)


def mixture(logits: Float[Tensor, " k"], components: Distribution) -> MixtureSameFamily:
    """The mixture of a batch of k distributions.

    Args:
        logits: logarithms of the components' weights, up to a constant.
        components: batch shape (k,).
    """
    kind: Any = NormalMixture if isinstance(components, DiagonalNormal) else MixtureSameFamily
    return kind(Categorical(logits=logits), components, validate_args=False)


class Reshaped(Distribution):
    """A distribution over vectors as one over maps with the same numbers, in the same order.

    Args:
        base: batch shape (*batch), event shape (z,).
        shape: the event shape, with z numbers.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base: Distribution, shape: Sequence[int]) -> None:
        self.base = base
        self.has_rsample = base.has_rsample
        super().__init__(base.batch_shape, torch.Size(shape), validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        return self._as_map(self.base.mean)

    @property
    def variance(self) -> Float[Tensor, "..."]:
        return self._as_map(self.base.variance)

    @property
    def covariance_matrix(self) -> Float[Tensor, "... z z"]:
        """Of the flattened codes; only if the base has one."""
        found: Tensor = self.base.covariance_matrix  # type: ignore[attr-defined]
        return found

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return self._as_map(self.base.rsample(sample_shape))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self.base.log_prob(value.flatten(-len(self.event_shape)))

    def entropy(self) -> Float[Tensor, "..."]:
        return self.base.entropy()

    def _as_map(self, vectors: Float[Tensor, "... z"]) -> Float[Tensor, "..."]:
        return vectors.reshape(*vectors.shape[:-1], *self.event_shape)


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
def _from_standard(q: DiagonalNormal, p: StandardNormal) -> Float[Tensor, "..."]:
    """Kingma & Welling 2014, appendix B."""
    return 0.5 * (q.mean.square() + q.log_variance.exp() - q.log_variance - 1)


@factorised(DiagonalNormal, DiagonalNormal)
def _from_diagonal(q: DiagonalNormal, p: DiagonalNormal) -> Float[Tensor, "..."]:
    ratio = q.log_variance - p.log_variance
    return 0.5 * ((q.mean - p.mean).square() * torch.exp(-p.log_variance) + ratio.exp() - ratio - 1)


def _full_from_standard(q: MultivariateNormal, p: StandardNormal) -> Float[Tensor, "..."]:
    trace = q.scale_tril.square().sum((-2, -1))
    log_determinant = 2 * q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (trace + q.mean.square().sum(-1) - log_determinant - q.event_shape[0])


def _reshaped_from_standard(q: Reshaped, p: StandardNormal) -> Float[Tensor, "..."]:
    return kl_divergence(q.base, StandardNormal(p.origin.flatten()))


_kl(MultivariateNormal, StandardNormal)(_full_from_standard)
_kl(Reshaped, StandardNormal)(_reshaped_from_standard)


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
