"""Encoder and decoder: build modules from lists of blocks, and infer the shapes between them."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vae_lab import config
from vae_lab.config import Size, halved
from vae_lab.config.vocabulary import FitError, Place, Shape, Style, describe
from vae_lab.model.blocks import building
from vae_lab.model.blocks.layers import ScaledLinear, convolve, initialize, shapes_only, transpose

LARGEST = 2**31
"""The most numbers in a map or vector of one image; a larger network is treated as a mistake."""
HEAVIEST = 2**35
"""The most weights of one block, 128 GiB; more are treated as a mistake."""
TUNED_PIXELS, TUNED_INPUTS = 28 * 28, 32 * 7 * 7
"""Pixels of the images that the default learning rate is for, and inputs of the default encoder's dense layer there."""


class Encoder(nn.Module):
    """Images to the parameters of a posterior: blocks, then one dense layer or, for codes that are maps, a convolution.

    (b, c, h, w) → (b, num_parameters).

    With Adam a step changes an output of a dense layer by up to the learning rate times the sum of its inputs, which
    grows with the image. So on larger images the last layer is a `ScaledLinear`: one learning rate serves all sizes.

    Args:
        image_shape: channels, height and width of the images.
        num_parameters: number of parameters of a posterior.
        blocks: the list from an architecture file, `[{"down": 16}, …]`.
        activation: for every block that sets none.
        normalization: for every block that sets none.
        latent_shape: the shape (c, h, w) of a code whose parameters are maps of its size; None for a vector.
        initialization: of the weights: `torch` or `he`; see `layers.initialize`.

    Raises:
        ConfigError: if a block is not in the vocabulary.
        FitError: naming the block that does not fit, its input and a way to fix it.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_parameters: int,
        blocks: Sequence[Any],
        activation: str = "leaky_relu",
        normalization: str = "batch",
        latent_shape: Sequence[int] | None = None,
        initialization: str = "torch",
    ) -> None:
        super().__init__()
        key = "encoder.blocks"
        place = Place(tuple(image_shape), Style(activation, normalization))
        steps = _plan(key, config.parse_blocks(key, blocks), place)
        shape = steps[-1].after if steps else place.shape
        self.blocks = nn.Sequential(*map(_build, steps))
        if latent_shape is not None:
            _check_last_map(key, shape, tuple(latent_shape))
            self.head = nn.Sequential(convolve(shape[0], num_parameters // math.prod(shape[1:]), 3), nn.Flatten())
        else:
            self.head = nn.Sequential(nn.Flatten(), _onto_parameters(shape, place.shape, num_parameters))
        initialize(self, initialization)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p"]:
        return self.head(self.blocks(images))


def _onto_parameters(shape: Shape, image_shape: Shape, count: int) -> nn.Linear:
    """The dense layer from a last map or vector to `count` parameters."""
    inputs = math.prod(shape)
    excess = min(math.prod(image_shape[1:]) / TUNED_PIXELS, inputs / TUNED_INPUTS)
    halvings = max(0, math.floor(math.log2(excess)))
    return ScaledLinear(inputs, count, halvings) if halvings else nn.Linear(inputs, count)


class Decoder(nn.Module):
    """Latent codes to the parameters of a likelihood: blocks, then one layer to the image's channels.

    (b, *latent_shape) → (b, c, h, w). The sizes of the maps are computed backwards from the image: before a block that
    doubles the map, the map has half the size, rounded up. Any image size can be reached that way. A first
    `unflatten: N` makes a map of N channels: of a vector by a dense layer, of a map of that size by a convolution.

    Args:
        image_shape: channels that the likelihood expects, height and width of the images.
        latent_dim: length of a latent vector.
        blocks: the list from an architecture file, `[{"unflatten": 32}, {"up": 16}, …]`.
        activation: for every block that sets none.
        normalization: for every block that sets none.
        latent_shape: the shape of a latent code; None is (latent_dim,).
        head: the layer from the last map to the image: `conv`, a convolution, or `up`, a transposed convolution that
            doubles the map. If the blocks end with a vector, the head is a dense layer.
        initialization: of the weights: `torch` or `he`; see `layers.initialize`.

    Raises:
        ConfigError: if a block is not in the vocabulary.
        FitError: naming the block that does not fit, its input and a way to fix it.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        blocks: Sequence[Any],
        activation: str = "leaky_relu",
        normalization: str = "batch",
        head: str = "conv",
        latent_shape: Sequence[int] | None = None,
        initialization: str = "torch",
    ) -> None:
        super().__init__()
        key = "decoder.blocks"
        parsed = config.parse_blocks(key, blocks)
        channels, *image_size = image_shape
        size = tuple(image_size)
        end = halved(size) if head == "up" else size
        _check_sizes(key, parsed, size, end)
        code = (latent_dim,) if latent_shape is None else tuple(latent_shape)
        if len(code) == 3:
            _check_codes(key, parsed, code, end)
            parsed = _from_map(parsed)
        place = Place(code, Style(activation, normalization), end)
        steps = _plan(key, parsed, place)
        shape = steps[-1].after if steps else place.shape
        if len(shape) == 3 and shape[1:] != end:
            wanted = f"the images are {channels}×{size[0]}×{size[1]}"
            wanted += f", which head: up makes of {end[0]}×{end[1]}" if head == "up" else ""
            raise FitError(
                f"decoder.blocks: end with {describe(shape)}, but {wanted}; change the blocks that set the size of "
                "the map, or give a class of your own that enlarges it its factor: grows: 2"
            )
        if len(shape) == 1 and head == "up":
            raise FitError(
                f"decoder.head: 'up' doubles a map, but the blocks end with {describe(shape)}; remove it, or add an "
                "'unflatten'"
            )
        self.blocks = nn.Sequential(*map(_build, steps))
        self.head = nn.Sequential(*_onto_image(shape, channels, size, head))
        initialize(self, initialization)

    def forward(self, z: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        return self.head(self.blocks(z)).contiguous()  # see `layout`


def _check_last_map(key: str, shape: Shape, code: Shape) -> None:
    """Check that an encoder's blocks end with a map of the height and width of the codes."""
    if len(shape) == 1:
        raise FitError(
            f"{key}: end with {describe(shape)}, but a code is {describe(code)}; take latent=vector, or blocks that "
            "end with a map, such as encoder=vanilla"
        )
    if shape[1:] != code[1:]:
        change = "remove" if math.prod(shape[1:]) < math.prod(code[1:]) else "add"
        raise FitError(
            f"{key}: end with {describe(shape)}, but a code is {describe(code)}; take "
            f"latent.shape=[{code[0]},{shape[1]},{shape[2]}], or {change} a 'down'"
        )


def _check_codes(key: str, blocks: Sequence[config.AnyBlock], code: Shape, end: Size) -> None:
    """Check that codes that are maps have the height and width from which a decoder's blocks reach the image.

    Blocks behind one that makes a vector take codes of any size; so do those behind a class of the user's.
    """
    for _, block in config.leaves(blocks, key):
        if not isinstance(block, config.Block) or len(block.after(code, code[1:])) == 1:
            return
    size = end
    for block in reversed(config.unrolled(blocks)):
        size = block.size_before(size)
    if size != code[1:]:
        raise FitError(
            f"{key}: reach the image from maps of {size[0]}×{size[1]}, but a code is {describe(code)}; take "
            f"latent.shape=[{code[0]},{size[0]},{size[1]}], or change the blocks that double the map"
        )


def _from_map(blocks: Sequence[config.AnyBlock]) -> list[config.AnyBlock]:
    """The blocks with a first `unflatten` as the convolution that it is for a map."""
    first, *others = blocks
    if isinstance(first, config.Group):
        first = first.model_copy(update={"blocks": _from_map(first.blocks)})
    elif isinstance(first, config.Block) and first.word == "unflatten":
        style = first.model_dump(include={"activation", "normalization", "repeat"})
        (first,) = config.parse_blocks("decoder.blocks", [{"conv": first.value, **style}])
    return [first, *others]


def _onto_image(shape: Shape, channels: int, size: Size, head: str) -> list[nn.Module]:
    if len(shape) == 1:
        return [nn.Linear(shape[0], channels * math.prod(size)), nn.Unflatten(1, (channels, *size))]
    if head == "up":
        return [transpose(shape[0], channels, 3, shape[1:], size)]
    return [nn.Conv2d(shape[0], channels, 3, padding=1)]


class Step(NamedTuple):
    """A block of a network with its input, its output shape and, for a list of blocks, the steps in it."""

    key: str
    block: config.AnyBlock
    place: Place
    after: Shape
    inner: list["Step"]


def _plan(key: str, blocks: Sequence[config.AnyBlock], place: Place) -> list[Step]:
    """Every block with its input shape, inferred on the meta device: nothing is allocated."""
    steps = []
    shape, style = place.shape, place.style
    repeats = [(index, turn, block) for index, block in enumerate(blocks) for turn in range(1, block.repeat + 1)]
    for (index, turn, block), size in zip(repeats, _sizes(blocks, place.size), strict=True):
        name = f"{key}[{index}]"
        input_place = Place(shape, style, size)
        inner = _plan(f"{name}.blocks", block.blocks, input_place) if isinstance(block, config.Group) else []
        step = Step(name, block, input_place, inner[-1].after if inner else shape, inner)
        try:
            shape = _output_shape(step)
        except FitError as error:
            when = f" (repeat {turn} of {block.repeat})" if block.repeat > 1 else ""
            raise FitError(f"{name}: {error}{when}") from error
        steps.append(step._replace(after=shape))
    return steps


def _sizes(blocks: Sequence[config.AnyBlock], end: Size | None) -> list[Size | None]:
    """The height and width that the map must have after each block, computed from the last block backwards."""
    sizes: list[Size | None] = []
    for block in reversed(config.unrolled(blocks)):
        sizes.append(end)
        end = end and block.size_before(end)
    return sizes[::-1]


def _check_sizes(key: str, blocks: Sequence[config.AnyBlock], image: Size, end: Size) -> None:
    """Check that a decoder does not double its map more often than from 1×1 to the image, or shrink it too often."""
    leaves = config.leaves(blocks, key)
    growing = [config.block_name(block) for _, block in leaves if block.grows > 1]
    fitting, size = 0, end
    for name, block in reversed(leaves):
        if block.grows > 1:
            if max(size) == 1:
                words = " or ".join(f"'{word}'" for word in sorted(map(str, {*growing})))
                raise FitError(
                    f"{name}: {len(growing)} {words} blocks double the map {len(growing)} times, but the images are "
                    f"{image[0]}×{image[1]}, which {fitting} doublings reach from 1×1; "
                    f"remove {len(growing) - fitting} {words}"
                )
            fitting += 1
        size = block.size_before(size)
        if math.prod(size) > LARGEST:
            raise FitError(
                f"{name}: makes the map smaller, so that with the blocks after it a map of {size[0]}×{size[1]} would "
                f"have to come in to end with the image's {image[0]}×{image[1]}; remove some of them"
            )


def _build(step: Step) -> nn.Module:
    if isinstance(step.block, config.Group):
        return building.enclose(step.block, [*map(_build, step.inner)], step.place.shape, step.after)
    return building.complete(building.build(step.block, step.place), step.place.shape)


def _output_shape(step: Step) -> Shape:
    """The output shape of a block, found by building it on the meta device: no memory, no arithmetic.

    Blocks of the vocabulary know their output shape. Any other class is also run there, for which torch needs two
    seconds in each process.

    Raises:
        FitError: if it cannot be built, does not accept its input, or returns something that no block may return.
    """
    block, shape = step.block, step.place.shape
    if isinstance(block, config.Group):
        with shapes_only():
            _build(step)
        return step.after
    name = block.target if isinstance(block, config.ForeignBlock) else block.word
    with shapes_only():
        try:
            module = building.build(block, step.place).to("meta")
        except FitError:
            raise
        except Exception as error:  # a class may raise anything
            raise FitError(
                f"'{name}' cannot be built ({_reason(error)}); its arguments are the keys beside it, and it gets "
                f"{describe(shape)}"
            ) from error
        after = (
            _run(module, name, shape) if isinstance(block, config.ForeignBlock) else block.after(shape, step.place.size)
        )
    weights = sum(parameter.numel() for parameter in module.parameters())
    if weights > HEAVIEST:
        raise FitError(
            f"has {weights:,} weights for {describe(shape)}, of which it makes {describe(after)}; make one of the two "
            "smaller"
        )
    if min(after) < 1 or math.prod(after) > LARGEST:
        raise FitError(f"makes {describe(after)} of {describe(shape)}; {_remedy(after)}")
    return after


def _run(module: nn.Module, name: str, shape: Shape) -> Shape:
    try:
        output = module(torch.empty(2, *shape))
    except Exception as error:  # torch and a user's forward() may raise anything
        raise FitError(f"'{name}' does not take {describe(shape)} ({_reason(error)}); {_advice(error)}") from error
    return _shape_of(output, name, shape)


def _remedy(shape: Shape) -> str:
    return "nothing is left of it: remove the block" if min(shape) < 1 else "that is too large: make it smaller"


def _advice(error: Exception) -> str:
    if re.search(r"\bmeta\b", str(error)):
        return (
            "blocks are tried on the meta device, where tensors have shapes but no values: let nothing in its "
            "forward() depend on a value or name a device"
        )
    return "change its arguments or the blocks before it"


def _shape_of(output: Any, name: str, shape: Shape) -> Shape:
    rule = "a block must return (b, features) or (b, channels, height, width), and floating-point numbers"
    if not isinstance(output, Tensor):
        raise FitError(f"'{name}' makes a {type(output).__name__} of {describe(shape)}; {rule}")
    if output.dim() not in (2, 4) or len(output) != 2 or not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        raise FitError(f"'{name}' makes {kind} {tuple(output.shape)} of {(2, *shape)}; {rule}")
    return tuple(output.shape[1:])


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: " + " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])
