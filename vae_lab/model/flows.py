"""Normalising flows over codes, of coupling layers."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from vae_lab import compat

Kind = Literal["affine", "spline"]


class Coupling(nn.Module):
    """Transforms half of the dimensions by parameters that a network computes from the other half (Dinh et al. 2017).

    Both directions cost one pass through the network. The element-wise transformations are those of zuko: affine, as in
    RealNVP, or rational-quadratic splines between −5 and 5 (Durkan et al. 2019).

    Args:
        dim: number of dimensions.
        context: number of further inputs of the network.
        width: width of its hidden layers.
        kind: the element-wise transformation.
        bins: number of bins of a spline.
    """

    def __init__(self, dim: int, context: int, width: int, kind: Kind, bins: int) -> None:
        super().__init__()
        transforms = compat.zuko_transforms()
        self.fixed, self.changed = dim // 2, dim - dim // 2
        if kind == "affine":
            self.transform: Callable[..., Any] = transforms.MonotonicAffineTransform
            self.sizes = [1, 1]
        else:
            self.transform = transforms.MonotonicRQSTransform
            self.sizes = [bins, bins, bins - 1]
        inputs = max(1, self.fixed + context)  # one dimension without context: the parameters are constants
        self.network = nn.Sequential(
            nn.Linear(inputs, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, self.changed * sum(self.sizes)),
        )  # fmt: skip

    def forward(
        self, x: Float[Tensor, "... z"], context: Float[Tensor, "... c"] | None
    ) -> tuple[Float[Tensor, "... z"], Float[Tensor, "..."]]:
        """Transform, and the logarithm of the absolute determinant of the Jacobian."""
        fixed, changed = torch.split(x, [self.fixed, self.changed], -1)
        changed, log_slope = self._transform(fixed, context).call_and_ladj(changed)
        return torch.cat([fixed, changed], -1), log_slope.sum(-1)

    def inverse(self, y: Float[Tensor, "... z"], context: Float[Tensor, "... c"] | None) -> Float[Tensor, "... z"]:
        """Undo the transformation."""
        fixed, changed = torch.split(y, [self.fixed, self.changed], -1)
        return torch.cat([fixed, self._transform(fixed, context).inv(changed)], -1)

    def _transform(self, fixed: Tensor, context: Tensor | None) -> Any:
        if context is not None:
            fixed = torch.cat([fixed, context.expand(*fixed.shape[:-1], -1)], -1)
        elif not self.fixed:
            fixed = fixed.new_ones(*fixed.shape[:-1], 1)
        with _in_32_bits(fixed.device.type):
            parameters = self.network(fixed).unflatten(-1, (self.changed, -1)).split(self.sizes, -1)
        return self.transform(*(one.squeeze(-1) if one.shape[-1] == 1 else one for one in parameters))


class Couplings(nn.Module):
    """Several coupling layers with the order of the dimensions reversed between them, so that each is transformed.

    Args:
        dim: number of dimensions.
        layers: number of coupling layers.
        context: number of further inputs of each.
        width: see `Coupling`.
        kind: see `Coupling`.
        bins: see `Coupling`.
    """

    def __init__(
        self, dim: int, layers: int, context: int = 0, width: int = 64, kind: Kind = "affine", bins: int = 8
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(dim, context, width, kind, bins) for _ in range(layers))

    def forward(
        self, x: Float[Tensor, "... z"], context: Float[Tensor, "... c"] | None = None
    ) -> tuple[Float[Tensor, "... z"], Float[Tensor, "..."]]:
        """Codes to noise, and the logarithm of the absolute determinant of the Jacobian."""
        x, total = _broadcast(x, context), x.new_zeros(())
        for layer in self.layers:
            x, log_determinant = layer(x.flip(-1), context)
            total = total + log_determinant
        return x, total

    def inverse(
        self, noise: Float[Tensor, "... z"], context: Float[Tensor, "... c"] | None = None
    ) -> Float[Tensor, "... z"]:
        """Noise to codes."""
        noise = _broadcast(noise, context)
        for layer in reversed(self.layers):
            assert isinstance(layer, Coupling)
            noise = layer.inverse(noise, context).flip(-1)
        return noise


def _in_32_bits(device: str) -> AbstractContextManager[None]:
    """A context without mixed precision: the two directions of a flow would differ by the rounding of 16 bits."""
    mixed = device != "meta" and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if mixed else nullcontext()


def _broadcast(x: Float[Tensor, "... z"], context: Float[Tensor, "... c"] | None) -> Float[Tensor, "... z"]:
    if context is None:
        return x
    shape = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])  # type: ignore[no-untyped-call]
    return x.expand(*shape, -1)


class Flow(Distribution):
    """The codes whose noise under coupling layers has a base distribution.

    `mean` is the code of the base's mean: it lies in the middle of the distribution, and nothing is sampled for it, but
    it is the expected value only where the layers are linear.

    Args:
        base: the distribution of the noise, whose event shape is that of a code; the layers take it flattened.
        couplings: coupling layers.
        context: their context, (*batch, c).
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, base: Distribution, couplings: Couplings, context: Float[Tensor, "... c"] | None = None) -> None:
        self.base, self.couplings, self.context = base, couplings, context
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def mean(self) -> Float[Tensor, "..."]:
        return self._codes(self.base.mean)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "..."]:
        return self._codes(self.base.rsample(sample_shape))

    def log_prob(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        noise, log_determinant = self.couplings(value.flatten(-len(self.event_shape)), self.context)
        return self.base.log_prob(self._shaped(noise)) + log_determinant

    def _codes(self, noise: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self._shaped(self.couplings.inverse(noise.flatten(-len(self.event_shape)), self.context))

    def _shaped(self, vectors: Float[Tensor, "... z"]) -> Float[Tensor, "..."]:
        return vectors.reshape(*vectors.shape[:-1], *self.event_shape)
