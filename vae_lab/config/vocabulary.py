"""The vocabulary of an architecture file: the words, what each may say. `blocks` has their modules."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Discriminator, Field, Tag, model_serializer

from vae_lab.config.base import Node, Section, Width

Activation = Literal["leaky_relu", "relu", "elu", "gelu", "silu", "tanh"]
Normalization = Literal["batch", "none"]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd, so that a map keeps its centre")
    return value


Kernel = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]


class Block(Section):
    """A word of the vocabulary; what a block leaves out it takes from its network."""

    activation: Activation | None = None
    normalization: Normalization | None = None

    @model_serializer(mode="wrap")
    def _leave_out_none(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class Conv(Block):
    """Convolution that keeps the size of the map."""

    conv: Width
    kernel: Kernel = 3


class Down(Block):
    """Convolution with stride 2: halves the map, rounding up."""

    down: Width
    kernel: Kernel = 3


class Up(Block):
    """Transposed convolution with stride 2: doubles the map, or ends one short where the image asks for it."""

    up: Width
    kernel: Kernel = 3


class EncDec(Block):
    """Encoder-decoder block: a strided convolution to `encdec` channels and a transposed one back."""

    encdec: Width
    kernel: Kernel = 3


class Dense(Block):
    """Fully connected layer; a map is flattened for it."""

    dense: Width


class Unflatten(Block):
    """Dense layer from a vector onto a map of `unflatten` channels, which the blocks after it grow to the image."""

    unflatten: Width


BLOCKS: dict[str, type[Block]] = {
    "conv": Conv,
    "down": Down,
    "up": Up,
    "encdec": EncDec,
    "dense": Dense,
    "unflatten": Unflatten,
}


def block_name(block: Any) -> str | None:
    """The vocabulary's word for a block (validated or as it stands in YAML), `_target_`, or None."""
    if isinstance(block, BaseModel):
        return next((name for name, kind in BLOCKS.items() if isinstance(block, kind)), "_target_")
    words = [key for key in block if key in (*BLOCKS, "_target_")] if isinstance(block, Mapping) else []
    return words[0] if len(words) == 1 else None


AnyBlock = Annotated[
    Annotated[Conv, Tag("conv")]
    | Annotated[Down, Tag("down")]
    | Annotated[Up, Tag("up")]
    | Annotated[EncDec, Tag("encdec")]
    | Annotated[Dense, Tag("dense")]
    | Annotated[Unflatten, Tag("unflatten")]
    | Annotated[Node, Tag("_target_")],
    Discriminator(block_name),
]
