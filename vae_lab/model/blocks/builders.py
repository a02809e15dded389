"""A builder for each word of the vocabulary: a block and the shape it gets to its module."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from vae_lab import config
from vae_lab.config import Size
from vae_lab.model.blocks.layers import FitError, Rescale, Shape, Style, convolution, describe, transposed
from vae_lab.model.blocks.modules import (
    GlobalPool,
    Hourglass,
    SelfAttention,
    Skip,
    SqueezeExcitation,
    convnext,
    residual,
)


@dataclass(frozen=True)
class Place:
    """Where a block stands in a network.

    Args:
        shape: what it gets, (c, h, w) or (features,).
        style: activation and normalisation, the block's own choices in it.
        size: the height and width it must end with, for blocks that choose their own; None in an encoder.
    """

    shape: Shape
    style: Style
    size: Size | None = None

    @property
    def channels(self) -> int:
        """The channels of the map that comes in."""
        return self.shape[0]

    @property
    def sides(self) -> Size:
        """Its height and width."""
        return self.shape[1:]

    @property
    def end(self) -> Size:
        """The height and width of the map after a doubling."""
        return self.size or tuple(2 * side for side in self.sides)


Kind = TypeVar("Kind", bound=config.Block)
Builder = Callable[[Any, Place], nn.Module]
Takes = Literal["map", "vector", "either"]

BUILDERS: dict[str, tuple[Builder, Takes]] = {}


def builds(kind: type[Kind], takes: Takes = "map") -> Callable[[Callable[[Kind, Place], nn.Module]], Builder]:
    """Make a function the builder of a word; `takes` says what shape may come to it."""

    def register(builder: Callable[[Kind, Place], nn.Module]) -> Builder:
        assert kind.word not in BUILDERS, kind.word
        BUILDERS[kind.word] = builder, takes
        return builder

    return register


def build(block: config.AnyBlock, place: Place) -> nn.Module:
    """The module of one block; lists of blocks are for `networks`.

    Raises:
        FitError: if it cannot take what comes to its place.
    """
    if isinstance(block, config.ForeignBlock):
        module = config.build(block)
        if not isinstance(module, nn.Module):
            raise FitError(f"a block must be a torch.nn.Module, but is a {type(module).__name__}")
        return module
    builder, takes = BUILDERS[block.word]
    if takes == "map" and len(place.shape) != 3:
        raise FitError(
            f"'{block.word}' works on a map (channels × height × width), but gets {describe(place.shape)}; "
            "put it before 'dense' or 'global_pool', or an 'unflatten' before it"
        )
    return builder(block, Place(place.shape, place.style.of(block), place.size))


def complete(module: nn.Module, shape: Shape) -> nn.Module:
    """The module with all of its weights: torch's lazy classes make theirs for the first input that they get.

    They get one of `shape` without values, for maps on the way may be of any size; so are the other weights meanwhile.
    """
    lazy = [part for part in module.modules() if isinstance(part, LazyModuleMixin)]
    if not lazy:
        return module
    aside: list[tuple[nn.Module, str, torch.Tensor]] = []

    def set_aside(part: nn.Module, *_: Any) -> None:
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if is_lazy(tensor) or tensor.is_meta:
                continue
            aside.append((part, name, tensor))
            empty = tensor.detach().to("meta")
            is_weight = isinstance(tensor, nn.Parameter)
            setattr(part, name, nn.Parameter(empty, tensor.requires_grad) if is_weight else empty)

    for part in module.modules():
        set_aside(part)
    hooks = [part.register_forward_pre_hook(set_aside) for part in lazy]  # after torch's own, which makes the weights
    try:
        with torch.device("meta"), torch.no_grad():
            module.eval()(torch.zeros(2, *shape))
    finally:
        for hook in hooks:
            hook.remove()
        for part, name, tensor in aside:
            setattr(part, name, tensor)
    module.train()
    return module


def enclose(block: config.Group, modules: Sequence[nn.Module], before: Shape, after: Shape) -> nn.Module:
    """The module of a list of blocks whose own modules are made.

    Raises:
        FitError: if there is a way around them and they change the shape.
    """
    body = nn.Sequential(*modules)
    if not block.skip:
        return body
    if before != after:
        raise FitError(
            f"'skip: true' adds what comes in, {describe(before)}, to what comes out, {describe(after)}; "
            "they must be alike: change the width of the last block or the blocks that set the size, or remove the skip"
        )
    return Skip(body)


def _halves(block: config.Block, place: Place, times: int = 1) -> None:
    possible = (max(place.sides) - 1).bit_length()
    if possible == 0:
        raise FitError(
            f"'{block.word}' halves the map, but gets {describe(place.shape)}; remove it, or a 'down' before it"
        )
    if times > possible:
        raise FitError(
            f"halves the map {times} times, but gets {describe(place.shape)}, which can be halved {possible} "
            f"{'time' if possible == 1 else 'times'}; take depth: {possible} or less"
        )


def _takes_kernel(kernel: int, place: Place, dilation: int = 1) -> None:
    if dilation * (kernel - 1) % 2 and min(place.sides) == 1:  # padded on both sides alike, one position is missing
        raise FitError(
            f"kernel: an even one needs a map of 2×2 or more, but gets {describe(place.shape)}; take {kernel - 1}, "
            "or remove the block"
        )


@builds(config.Conv)
def _conv(block: config.Conv, place: Place) -> nn.Module:
    for what, channels in (("that come in", place.channels), ("that it makes", block.conv)):
        if channels % block.groups:
            raise FitError(
                f"groups: {block.groups} must divide the channels {what}, but they are {channels}; "
                f"{_divisors(channels)} would"
            )
    _takes_kernel(block.kernel, place, block.dilation)
    return convolution(
        place.channels, block.conv, block.kernel, place.style, block.stride, block.dilation, block.groups
    )


@builds(config.Down)
def _down(block: config.Down, place: Place) -> nn.Module:
    _halves(block, place)
    _takes_kernel(block.kernel, place)
    return convolution(place.channels, block.down, block.kernel, place.style, stride=2)


@builds(config.Up)
def _up(block: config.Up, place: Place) -> nn.Module:
    return transposed(place.channels, block.up, block.kernel, place.style, place.sides, place.end)


@builds(config.Resize)
def _resize(block: config.Resize, place: Place) -> nn.Module:
    return nn.Sequential(
        Rescale(place.end, block.mode), *convolution(place.channels, block.resize, block.kernel, place.style)
    )


@builds(config.Pool)
def _pool(block: config.Pool, place: Place) -> nn.Module:
    _halves(block, place)
    return nn.MaxPool2d(2, ceil_mode=True) if block.pool == "max" else nn.AvgPool2d(2, ceil_mode=True)


@builds(config.GlobalPool)
def _global_pool(block: config.GlobalPool, place: Place) -> nn.Module:
    return GlobalPool(block.global_pool)


@builds(config.EncDec)
def _encdec(block: config.EncDec, place: Place) -> nn.Module:
    _halves(block, place, block.depth)
    return Hourglass(place.shape, block.encdec, block.kernel, place.style, block.depth, skip=block.skip)


@builds(config.Residual)
def _residual(block: config.Residual, place: Place) -> nn.Module:
    return residual(place.channels, block.residual, block.kernel, block.kind, place.style, block.stride)


@builds(config.Depthwise)
def _depthwise(block: config.Depthwise, place: Place) -> nn.Module:
    _takes_kernel(block.kernel, place)
    channels = place.channels
    return nn.Sequential(
        *convolution(channels, channels, block.kernel, place.style, block.stride, groups=channels),
        *convolution(channels, block.depthwise, 1, place.style),
    )


@builds(config.ConvNext)
def _convnext(block: config.ConvNext, place: Place) -> nn.Module:
    return convnext(place.channels, block.convnext, block.kernel, block.expansion, place.style)


@builds(config.SqueezeExcitation)
def _squeeze_excitation(block: config.SqueezeExcitation, place: Place) -> nn.Module:
    return SqueezeExcitation(place.channels, block.squeeze_excitation, place.style)


@builds(config.Attention)
def _attention(block: config.Attention, place: Place) -> nn.Module:
    heads, channels = block.attention, place.channels
    if channels % heads:
        raise FitError(
            f"{heads} heads must share the channels evenly, but get {describe(place.shape)}; "
            f"{_divisors(channels)} would, or another width before it"
        )
    if max(place.sides) == 1:
        raise FitError(f"has no other position to attend to: it gets {describe(place.shape)}; put it on a larger map")
    return SelfAttention(channels, heads, place.style)


def _divisors(number: int) -> str:
    """The smaller numbers that divide one, for an error message."""
    found = [divisor for divisor in range(1, min(number, 64) + 1) if number % divisor == 0]
    return ", ".join(map(str, found[:-1])) + f" or {found[-1]}" if len(found) > 1 else "1"


@builds(config.Dropout, takes="either")
def _dropout(block: config.Dropout, place: Place) -> nn.Module:
    return nn.Dropout(block.dropout)


@builds(config.Dense, takes="either")
def _dense(block: config.Dense, place: Place) -> nn.Module:
    layer = nn.Linear(math.prod(place.shape), block.dense, bias=place.style.bias)
    return nn.Sequential(nn.Flatten(), layer, *place.style.after(block.dense, spatial=False))


@builds(config.Unflatten, takes="vector")
def _unflatten(block: config.Unflatten, place: Place) -> nn.Module:
    if len(place.shape) == 3:
        raise FitError(f"'unflatten' makes a map of a vector, but gets {describe(place.shape)}; remove it")
    target = (block.unflatten, *(place.size or (1, 1)))
    layer = nn.Linear(place.shape[0], math.prod(target), bias=place.style.bias)
    return nn.Sequential(layer, nn.Unflatten(1, target), *place.style.after(block.unflatten))
