"""Encoder and decoder: lists of blocks made into modules, with the shapes between them inferred."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.func import functional_call

from vae_lab import blocks as vocabulary
from vae_lab import config
from vae_lab.blocks import FitError, Shape, Style, describe, halved


class Encoder(nn.Module):
    """Images to the parameters of a posterior: blocks, then one dense layer.

    (b, c, h, w) → (b, num_parameters).

    Args:
        image_shape: channels, height and width of the images.
        num_parameters: how many numbers describe a posterior.
        blocks: the list from an architecture file, `[{"down": 16}, …]`.
        activation: of every block that names none.
        normalization: likewise.

    Raises:
        FitError: naming the block that does not fit, what it gets and a way to mend it.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_parameters: int,
        blocks: Sequence[Mapping[str, Any]],
        activation: str = "leaky_relu",
        normalization: str = "batch",
    ) -> None:
        super().__init__()
        shape = tuple(image_shape)
        style = Style(activation, normalization)
        layers: list[nn.Module] = []
        for index, block in enumerate(_parse(blocks)):
            module, shape = _place(f"encoder.blocks[{index}]", block, shape, style)
            layers.append(module)
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_parameters))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p"]:
        return self.head(self.blocks(images))


class Decoder(nn.Module):
    """Latent vectors to images in [0, 1]: blocks, then one layer onto the image's channels and a sigmoid.

    (b, latent_dim) → (b, c, h, w). The sizes of the maps are found backwards from the image: before an `up` the
    map is half as large, rounded up, so that any image size can be reached.

    Args:
        image_shape: channels, height and width of the images.
        latent_dim: length of a latent vector.
        blocks: the list from an architecture file, `[{"unflatten": 32}, {"up": 16}, …]`.
        activation: of every block that names none.
        normalization: likewise.

    Raises:
        FitError: naming the block that does not fit, what it gets and a way to mend it.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        blocks: Sequence[Mapping[str, Any]],
        activation: str = "leaky_relu",
        normalization: str = "batch",
    ) -> None:
        super().__init__()
        channels, *image_size = image_shape
        parsed = _parse(blocks)
        sizes = _sizes(parsed, tuple(image_size))
        shape: Shape = (latent_dim,)
        style = Style(activation, normalization)
        layers: list[nn.Module] = []
        for index, (block, size) in enumerate(zip(parsed, sizes, strict=True)):
            module, shape = _place(f"decoder.blocks[{index}]", block, shape, style, size)
            layers.append(module)
        self.blocks = nn.Sequential(*layers)
        if len(shape) == 3 and list(shape[1:]) != image_size:
            raise FitError(
                f"decoder.blocks: end with {describe(shape)}, but the images are {channels}×"
                f"{image_size[0]}×{image_size[1]}; change the blocks that set the size of the map"
            )
        self.head = (
            nn.Sequential(nn.Conv2d(shape[0], channels, 3, padding=1), nn.Sigmoid())
            if len(shape) == 3
            else nn.Sequential(
                nn.Linear(shape[0], math.prod(image_shape)),
                nn.Unflatten(1, (channels, *image_size)),
                nn.Sigmoid(),
            )
        )

    def forward(self, z: Float[Tensor, "b z"]) -> Float[Tensor, "b c h w"]:
        return self.head(self.blocks(z))


_BLOCKS = TypeAdapter(list[config.AnyBlock])


def _parse(blocks: Sequence[Mapping[str, Any]]) -> list[config.AnyBlock]:
    return _BLOCKS.validate_python(list(blocks))


def _sizes(blocks: Sequence[config.AnyBlock], image_size: Shape) -> list[Shape]:
    """The height and width that the map has after each block, found from the image backwards."""
    sizes = []
    size = image_size
    doublings = [index for index, block in enumerate(blocks) if isinstance(block, config.Up)]
    for index, block in reversed(list(enumerate(blocks))):
        sizes.append(size)
        if isinstance(block, config.Up):
            if max(size) == 1:
                fitting = len(doublings) - doublings.index(index) - 1
                raise FitError(
                    f"decoder.blocks[{index}]: {len(doublings)} 'up' blocks double the map {len(doublings)} times, "
                    f"but the images are {image_size[0]}×{image_size[1]}, which {fitting} doublings reach from "
                    f"1×1; remove {len(doublings) - fitting} 'up'"
                )
            size = tuple(map(halved, size))
    return sizes[::-1]


def _place(
    key: str, block: config.AnyBlock, shape: Shape, style: Style, size: Shape | None = None
) -> tuple[nn.Module, Shape]:
    """The block's module for input of `shape`, and the shape that it puts out."""
    try:
        module = vocabulary.build(block, shape, style, size)
    except (FitError, TypeError, ValueError) as error:
        raise FitError(f"{key}: {error}") from error
    try:
        return module, _output_shape(module, shape)
    except Exception as error:  # torch and a user's forward() raise what they like at a shape that does not fit
        word = config.block_name(block)
        name = block.target if isinstance(block, config.Node) else word
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FitError(f"{key}: '{name}' does not take {describe(shape)} ({reason})") from error


def _output_shape(module: nn.Module, shape: Shape) -> Shape:
    """The shape of an output, by a run on the meta device: no memory, no arithmetic, no change to the module."""
    state = {name: value.detach().to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    with torch.device("meta"), torch.no_grad():
        output = functional_call(module, state, (torch.empty(2, *shape),))
    if not isinstance(output, Tensor) or output.dim() not in (2, 4) or len(output) != 2:
        got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"a block must return (b, features) or (b, channels, height, width), but returned {got}")
    return tuple(output.shape[1:])
