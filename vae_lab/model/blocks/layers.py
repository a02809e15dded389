"""The layers that blocks use: normalisation, activation and convolutions."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vae_lab.config.vocabulary import FitError, Size, Style
from vae_lab.model.distributions import unvalidated

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}

# Wu & He (2018) find that 32 groups work best, with at least a few channels per group.
MOST_GROUPS, SMALLEST_GROUP = 32, 4


# Functions that keep the shape of their input. On the meta device torch needs a millisecond for each of them.
_KEEPING_SHAPE = {functional.leaky_relu, functional.relu, functional.elu, functional.gelu, functional.silu, torch.tanh}

# Torch runs them step by step there, with 10 ms for each step.
_RECURRENT = {torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}


class _Shortcuts(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        x, mean = (*args, None, None)[:2]
        is_float = isinstance(x, Tensor) and x.is_floating_point()
        if is_float and func in _KEEPING_SHAPE:
            return x
        if is_float and func is functional.batch_norm and mean is not None and len(mean) == x.shape[1] < x.numel():
            return x  # otherwise torch raises the error
        if is_float and func in _RECURRENT and not isinstance(args[2], Tensor):  # else the sequence is packed
            states = args[1] if isinstance(args[1], Tensor) else (*args[1],)
            first, is_bidirectional = (states if isinstance(states, Tensor) else states[0]), args[7]
            output = x.new_empty(*x.shape[:2], first.shape[-1] * (1 + is_bidirectional))
            return (output, states) if isinstance(states, Tensor) else (output, *states)
        return func(*args, **kwargs or {})


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside it modules are built and run on the meta device: tensors have shapes, but no memory and no values."""
    with torch.device("meta"), torch.no_grad(), unvalidated(), _Shortcuts():
        yield


def in_32_bits(device: torch.device) -> AbstractContextManager[Any]:
    """Inside it products of 32-bit tensors stay in 32 bits, whatever the training precision."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels at each position (Ba et al. 2016), as in ConvNeXt.

    (b, c, h, w) → (b, c, h, w), with a weight and a bias for each channel.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Rescale(nn.Module):
    """Resize a map to `size` (h, w) by interpolation: (b, c, ·, ·) → (b, c, h, w)."""

    def __init__(self, size: Size, mode: str) -> None:
        super().__init__()
        self.size, self.mode = size, mode

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return functional.interpolate(x, self.size, mode=self.mode)

    def extra_repr(self) -> str:
        return f"{self.size}, mode={self.mode!r}"


class ScaledLinear(nn.Linear):
    """A dense layer that learns 2ⁿ times more slowly: (b, inputs) → (b, outputs).

    Its weights are trained 2ⁿ times larger than they act, so that a step of Adam, which does not depend on a weight's
    size, is 2ⁿ times smaller. At the start it is `nn.Linear`. Stored weights are those that act; powers of two lose
    no digit. This is the width scaling of Yang & Hu (2021), "Feature Learning in Infinite-Width Neural Networks".
    """

    def __init__(self, inputs: int, outputs: int, halvings: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = 0.5**halvings
        with torch.no_grad():
            self.weight /= self.scale
        self.register_state_dict_post_hook(_as_acting)  # type: ignore[no-untyped-call]  # in torch
        self.register_load_state_dict_pre_hook(_as_trained)  # type: ignore[no-untyped-call]  # in torch

    def forward(self, x: Float[Tensor, "b inputs"]) -> Float[Tensor, "b outputs"]:
        return functional.linear(x, self.weight) * self.scale + self.bias


def _as_acting(module: ScaledLinear, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    state[f"{prefix}weight"] = state[f"{prefix}weight"] * module.scale


def _as_trained(module: ScaledLinear, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] / module.scale


def initialize(network: nn.Module, how: str) -> None:
    """Draw the weights of a network's dense and convolutional layers; biases keep torch's values.

    Args:
        network: the network.
        how: `torch` leaves torch's own initialisation; `he` is normal with variance 2 / fan-in (He et al. 2015).
    """
    if how == "torch":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            inputs_first = isinstance(layer, nn.ConvTranspose2d)  # torch takes the second dimension for the inputs
            nn.init.kaiming_normal_(layer.weight, mode="fan_out" if inputs_first else "fan_in", nonlinearity="relu")
        if isinstance(layer, ScaledLinear):
            with torch.no_grad():
                layer.weight /= layer.scale


def norm(style: Style, channels: int, *, spatial: bool = True) -> list[nn.Module]:
    """The normalisation of a map or, if not `spatial`, of a vector; empty for none.

    Raises:
        FitError: if its output would always be zero.
    """
    match style.normalization:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(channels) if spatial else nn.BatchNorm1d(channels)]
    if channels == 1:  # a single number normalises to zero
        raise FitError(
            f"normalization: {style.normalization} needs 2 channels or more, but gets 1; take batch or none, or "
            "more channels"
        )
    if style.normalization == "layer":
        return [ChannelNorm(channels) if spatial else nn.LayerNorm(channels)]
    return [nn.GroupNorm(groups(channels), channels)]


def act(style: Style) -> list[nn.Module]:
    """The activation; empty for none.

    Raises:
        FitError: if it is gated: a gate needs a layer before it; see `after`.
    """
    if style.activation == "gated":
        raise FitError("activation: gated is for blocks of one layer, such as dense, conv, down and up; take another")
    return [] if style.activation == "none" else [ACTIVATIONS[style.activation]()]


def made(style: Style, channels: int) -> int:
    """The channels that a layer must make for `after` to return `channels`: twice as many if they are gated."""
    return 2 * channels if style.activation == "gated" else channels


def after(style: Style, channels: int, *, spatial: bool = True) -> list[nn.Module]:
    """The normalisation and activation after a layer with `made` channels.

    `gated` multiplies one half of its outputs by the sigmoid of the other (Dauphin et al. 2017).
    """
    normalization = norm(style, made(style, channels), spatial=spatial)
    return [*normalization, nn.GLU(dim=1)] if style.activation == "gated" else [*normalization, *act(style)]


def groups(channels: int) -> int:
    """The largest number of groups, up to 32, that divides the channels with at least 4 per group; else one."""
    most = max(1, min(MOST_GROUPS, channels // SMALLEST_GROUP))
    return next(count for count in range(most, 0, -1) if channels % count == 0)


def convolve(
    into: int, out: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1, bias: bool = True
) -> nn.Conv2d:
    """A convolution: (b, into, h, w) → (b, out, ⌈h / stride⌉, ⌈w / stride⌉); an even kernel rounds down."""
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(into, out, kernel, stride, padding, dilation, groups, bias=bias)


def convolution(
    into: int, out: int, kernel: int, style: Style, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """`convolve`, normalisation, activation.

    Raises:
        FitError: if groups are to be gated: a gate and what it gates would be from different groups.
    """
    if groups > 1 and style.activation == "gated":
        raise FitError("activation: gated is for layers without groups; take another")
    channels = made(style, out)
    layer = convolve(into, channels, kernel, stride=stride, dilation=dilation, groups=groups, bias=style.bias)
    return nn.Sequential(layer, *after(style, out))


def transpose(into: int, out: int, kernel: int, start: Size, end: Size, *, bias: bool = True) -> nn.ConvTranspose2d:
    """A transposed convolution with stride 2: from a map of size `start` (h, w) to one of size `end`.

    Each side of `end` is twice that of `start`, or one less.
    """
    # The output length is 2n - 2 - 2 · padding + kernel, plus an output padding of 0 or 1.
    height, width = (goal - 2 * side + 2 - kernel for side, goal in zip(start, end, strict=True))
    padding, extra = (-(height // 2), -(width // 2)), (height % 2, width % 2)
    return nn.ConvTranspose2d(into, out, kernel, 2, padding, extra, bias=bias)


def transposed(into: int, out: int, kernel: int, style: Style, start: Size, end: Size) -> nn.Sequential:
    """`transpose`, normalisation, activation."""
    layer = transpose(into, made(style, out), kernel, start, end, bias=style.bias)
    return nn.Sequential(layer, *after(style, out))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A context in which a network is in evaluation mode, with gradients."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
