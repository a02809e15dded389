"""The vocabulary of an architecture file: what each of its words builds. The words' schema is in `config`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vae_lab import config

Shape = tuple[int, ...]
"""A vector's (features,) or a map's (channels, height, width)."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Style:
    """What the layers of a network share unless a block says otherwise."""

    activation: str
    normalization: str

    def of(self, block: config.Block) -> "Style":
        """The style with the block's own choices in it."""
        return Style(block.activation or self.activation, block.normalization or self.normalization)

    @property
    def bias(self) -> bool:
        """Whether a layer needs a bias of its own: a norm after it has one."""
        return self.normalization == "none"

    def after(self, channels: int, *, spatial: bool = True) -> list[nn.Module]:
        """What follows a layer: normalisation and activation."""
        activation = ACTIVATIONS[self.activation]()
        if self.normalization == "none":
            return [activation]
        return [nn.BatchNorm2d(channels) if spatial else nn.BatchNorm1d(channels), activation]


class FitError(ValueError):
    """A block that does not fit what comes before it or what must come out."""


def halved(size: int) -> int:
    """Half of a map's side, rounded up: what a stride of 2 leaves of it."""
    return -(-size // 2)


def convolution(into: int, out: int, kernel: int, style: Style, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, activation: (b, into, h, w) → (b, out, ⌈h / stride⌉, ⌈w / stride⌉)."""
    layer = nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=style.bias)
    return nn.Sequential(layer, *style.after(out))


def transposed(into: int, out: int, kernel: int, style: Style, start: Shape, end: Shape) -> nn.Sequential:
    """Transposed convolution, normalisation, activation: a map of `start` (h, w) onto one of `end`.

    Each side of `end` is twice that of `start`, or one less.
    """
    # The padding takes the output to 2n - 1; what is missing is added on the far side.
    extra = (end[0] - (2 * start[0] - 1), end[1] - (2 * start[1] - 1))
    layer = nn.ConvTranspose2d(into, out, kernel, 2, kernel // 2, output_padding=extra, bias=style.bias)
    return nn.Sequential(layer, *style.after(out))


class Hourglass(nn.Module):
    """The encoder-decoder block: halve the map by a strided convolution, restore it by a transposed one.

    (b, c, h, w) → (b, c, h, w) with `channels` at the narrow place, as the published `encdec` models have it.
    """

    def __init__(self, shape: Shape, channels: int, kernel: int, style: Style) -> None:
        super().__init__()
        outer, *size = shape
        small = tuple(map(halved, size))
        self.encode = convolution(outer, channels, kernel, style, stride=2)
        self.decode = transposed(channels, outer, kernel, style, small, tuple(size))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.decode(self.encode(x))


def build(block: config.AnyBlock, shape: Shape, style: Style, size: Shape | None = None) -> nn.Module:
    """The module of one block.

    Args:
        block: the validated block.
        shape: what it gets, (c, h, w) or (features,).
        style: activation and normalisation of its network.
        size: the height and width it must end with, for blocks that choose their own (`up`, `unflatten`).

    Raises:
        FitError: if it cannot take that shape.
    """
    if isinstance(block, config.Node):
        module = config.build(block)
        if not isinstance(module, nn.Module):
            raise FitError(f"a block must be a torch.nn.Module, but is a {type(module).__name__}")
        return module
    style = style.of(block)
    match block:
        case config.Dense(dense=features):
            layer = nn.Linear(math.prod(shape), features, bias=style.bias)
            return nn.Sequential(nn.Flatten(), layer, *style.after(features, spatial=False))
        case config.Unflatten(unflatten=channels):
            if len(shape) == 3:
                raise FitError(f"'unflatten' makes a map of a vector, but gets {describe(shape)}; remove it")
            target = (channels, *(size or (1, 1)))
            layer = nn.Linear(math.prod(shape), math.prod(target), bias=style.bias)
            return nn.Sequential(layer, nn.Unflatten(1, target), *style.after(channels))
    word = config.block_name(block)
    if len(shape) != 3:
        raise FitError(
            f"'{word}' works on a map (channels × height × width), but gets {describe(shape)}; "
            "put it before 'dense', or an 'unflatten' before it"
        )
    channels, *sides = shape
    if isinstance(block, config.Down | config.EncDec) and max(sides) == 1:
        raise FitError(f"'{word}' halves the map, but gets {describe(shape)}; remove it, or a 'down' before it")
    match block:
        case config.Conv(conv=out, kernel=kernel):
            return convolution(channels, out, kernel, style)
        case config.Down(down=out, kernel=kernel):
            return convolution(channels, out, kernel, style, stride=2)
        case config.Up(up=out, kernel=kernel):
            end = size or tuple(2 * side for side in sides)
            return transposed(channels, out, kernel, style, tuple(sides), end)
        case config.EncDec(encdec=inner, kernel=kernel):
            return Hourglass(shape, inner, kernel, style)
    raise AssertionError(f"no module for {block!r}")


def describe(shape: Shape) -> str:
    """A shape as an error message says it."""
    return f"a vector of {shape[0]}" if len(shape) == 1 else "a map of " + "×".join(map(str, shape))
