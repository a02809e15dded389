"""The vocabulary of an architecture file: its words, and lists of them.

Each word is a class with the decorator `@word("…")`, in its own file in `model/blocks/`. The class defines the word's
arguments, its output shape and its module. torch is imported only where a module is built.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_serializer,
)

from vae_lab.config.base import Node, Section
from vae_lab.config.names import PACKAGE

Activation = Literal["leaky_relu", "relu", "elu", "gelu", "silu", "tanh", "gated", "none"]
Normalization = Literal["batch", "group", "layer", "none"]
Initialization = Literal["torch", "he"]
Size = tuple[int, ...]
"""Height and width of a map."""
Shape = tuple[int, ...]
"""A vector's (features,) or a map's (channels, height, width)."""

MOST_BLOCKS = 1000
DEEPEST = 20
"""The most levels of nested block lists; Hydra reads about forty."""
WRITTEN = ("kernel",)
"""Arguments that a stored configuration contains even at their defaults."""

Repeat = Annotated[int, Field(ge=1, le=MOST_BLOCKS, strict=True)]
Stride = Annotated[int, Field(ge=1, le=8)]


def _odd_unless_strided(kernel: int, info: ValidationInfo) -> int:
    if kernel % 2 == 0 and info.data.get("stride", 1) == 1:
        raise ValueError("must be odd, so that a map keeps its centre (even ones need a stride of 2 or more)")
    return kernel


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ValueError("must be odd, so that a map keeps its centre")
    return kernel


AnyKernel = Annotated[int, Field(ge=1, le=31)]
OddKernel = Annotated[AnyKernel, AfterValidator(_odd)]
StridedKernel = Annotated[AnyKernel, AfterValidator(_odd_unless_strided)]


def halved(size: Size) -> Size:
    """Half of each side, rounded up: the size after a stride of 2, and the size that doubling starts from."""
    return tuple(-(-side // 2) for side in size)


def doubled(size: Size) -> Size:
    """Twice each side."""
    return tuple(2 * side for side in size)


def strided(size: Size, stride: int, kernel: int = 1, dilation: int = 1) -> Size:
    """The size after a convolution: the size divided by the stride, rounded up, or down with an even kernel."""
    reach = dilation * (kernel - 1)
    return tuple((side - reach + 2 * (reach // 2) - 1) // stride + 1 for side in size)


class FitError(ValueError):
    """A block does not fit its input or the required output."""


def describe(shape: Shape) -> str:
    """A shape in words, for error messages."""
    return f"a vector of {shape[0]}" if len(shape) == 1 else "a map of " + "×".join(map(str, shape))


class Block(Section):
    """A word of the vocabulary."""

    word: ClassVar[str]
    repeat: Repeat = 1

    takes: ClassVar[Literal["map", "vector", "either"]] = "map"
    """The kind of input that it accepts."""
    scales: ClassVar[bool] = True
    """Whether the word's number is a width, which a matched comparison may change."""
    keeps_channels: ClassVar[bool] = False
    """Whether that width stays inside the block, whose output has as many channels as its input."""
    grows: ClassVar[int] = 1
    """The factor by which it multiplies the sides of a map."""

    @property
    def value(self) -> Any:
        """The value after the word: 16 in `down: 16`."""
        return getattr(self, self.word)

    def size_before(self, size: Size) -> Size:
        """The input size that gives the output size `size`; a decoder computes its sizes with it."""
        return size

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """The output shape for one image's shape; `size` is the output size that a decoder requires."""
        return shape

    def build(self, place: "Place") -> Any:
        """Build the `torch.nn.Module` for its place in a network.

        Raises:
            FitError: if it cannot take the input at that place.
        """
        raise NotImplementedError

    def divisor(self) -> int:
        """The number that must divide the block's own width."""
        return 1

    def divisor_before(self) -> int:
        """The number that must divide the number of input channels."""
        return 1

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # A new argument of a word must not change the checksums of earlier configurations.
        fields = type(self).model_fields
        return {key: value for key, value in handler(self).items() if key in WRITTEN or value != fields[key].default}


class Styled(Block):
    """A block with an activation and a normalisation; by default it uses those of its network."""

    activation: Activation | None = None
    normalization: Normalization | None = None


class Strided(Styled):
    """A styled block with a stride, which divides the sides of the map, rounding up."""

    stride: Stride = 1

    def size_before(self, size: Size) -> Size:
        """`stride` times as large."""
        return tuple(self.stride * side for side in size)


@dataclass(frozen=True)
class Style:
    """The settings that the layers of a network share unless a block has its own."""

    activation: str
    normalization: str

    def of(self, block: Block) -> "Style":
        """The style with the block's own choices applied."""
        return Style(
            getattr(block, "activation", None) or self.activation,
            getattr(block, "normalization", None) or self.normalization,
        )

    @property
    def bias(self) -> bool:
        """Whether a layer needs its own bias: a norm after it has one."""
        return self.normalization == "none"


@dataclass(frozen=True)
class Place:
    """The position of a block in a network.

    Args:
        shape: its input shape, (c, h, w) or (features,).
        style: activation and normalisation, with the block's own choices applied.
        size: the required output height and width, for blocks that choose their own; None in an encoder.
    """

    shape: Shape
    style: Style
    size: Size | None = None

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return self.shape[0]

    @property
    def sides(self) -> Size:
        """The height and width of the input map."""
        return self.shape[1:]

    @property
    def end(self) -> Size:
        """The height and width of the map after a doubling."""
        return self.size or tuple(2 * side for side in self.sides)


def halvable(block: Block, place: Place, times: int = 1) -> None:
    """Check that a map can be halved `times` times.

    Raises:
        FitError: if not.
    """
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


def takes_kernel(kernel: int, place: Place, dilation: int = 1) -> None:
    """Check that a map is large enough for an even kernel.

    Raises:
        FitError: if not.
    """
    if dilation * (kernel - 1) % 2 and min(place.sides) == 1:  # padded on both sides alike, one position is missing
        raise FitError(
            f"kernel: an even one needs a map of 2×2 or more, but gets {describe(place.shape)}; take {kernel - 1}, "
            "or remove the block"
        )


def divisors(number: int) -> str:
    """The smaller numbers that divide one, for an error message."""
    found = [divisor for divisor in range(1, min(number, 64) + 1) if number % divisor == 0]
    return ", ".join(map(str, found[:-1])) + f" or {found[-1]}" if len(found) > 1 else "1"


BLOCKS: dict[str, type[Block]] = {}
"""Word to schema."""
DUPLICATES: list[str] = []
"""An error message for each word that two blocks define."""

Kind = TypeVar("Kind", bound=Block)


def word(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Register a schema as the meaning of a word."""

    def register(kind: type[Kind]) -> type[Kind]:
        if name in BLOCKS:
            homes = f"{BLOCKS[name].__module__} and {kind.__module__}"
            DUPLICATES.append(f"the block {name!r} is defined in {homes}: rename one of the two")
            return kind
        assert name in kind.model_fields, f"{kind.__name__} needs a field {name!r} for what follows the word"
        kind.word = name
        BLOCKS[name] = kind
        return kind

    return register


@word("blocks")
class Group(Block):
    """A list of blocks as one block: repeated together, or with a skip connection."""

    blocks: Annotated[list["AnyBlock"], Field(min_length=1)]
    skip: bool = False

    scales = False

    def size_before(self, size: Size) -> Size:
        """The input size that its blocks need, computed from the last to the first."""
        for block in reversed(unrolled(self.blocks)):
            size = block.size_before(size)
        return size


class ForeignBlock(Node):
    """Any `torch.nn.Module` class; all keys except `repeat` and `grows` are its arguments."""

    repeat: Repeat = 1
    grows: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    """The factor by which it multiplies the sides of a map, which a decoder must know."""

    def size_before(self, size: Size) -> Size:
        """`grows` times smaller, rounded up."""
        return tuple(-(-side // self.grows) for side in size)

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in ("repeat", "grows") or value != 1}


def block_name(block: Any) -> str | None:
    """The vocabulary's word for a block (validated, or as in YAML), `_target_`, or None."""
    if isinstance(block, BaseModel):
        return block.word if isinstance(block, Block) else "_target_"
    words = [key for key in block if key in (*BLOCKS, "_target_")] if isinstance(block, Mapping) else []
    return words[0] if len(words) == 1 else None


def _discover() -> None:
    """Import every file of `model/blocks`: those with words import no torch."""
    for path in sorted((PACKAGE / "model" / "blocks").glob("*.py")):
        if '@word("' in path.read_text(encoding="utf-8"):
            importlib.import_module(f"vae_lab.model.blocks.{path.stem}")


_discover()

if TYPE_CHECKING:
    AnyBlock = Block | ForeignBlock
else:
    AnyBlock = Annotated[
        Union[
            (*(Annotated[kind, Tag(name)] for name, kind in BLOCKS.items()), Annotated[ForeignBlock, Tag("_target_")])
        ],
        Discriminator(block_name),
    ]
    Group.model_rebuild()


def unrolled(blocks: Iterable[AnyBlock]) -> list[AnyBlock]:
    """The blocks of a list, each repeated as its `repeat` says."""
    return [block for block in blocks for _ in range(block.repeat)]


def count(blocks: Iterable[AnyBlock]) -> int:
    """The number of blocks in a list, with repeats and nested lists."""
    return sum(block.repeat * (count(block.blocks) if isinstance(block, Group) else 1) for block in blocks)


def depth(blocks: Iterable[AnyBlock]) -> int:
    """The nesting depth of a list of blocks, itself included."""
    return 1 + max((depth(block.blocks) for block in blocks if isinstance(block, Group)), default=0)


def not_too_many(blocks: list[AnyBlock]) -> list[AnyBlock]:
    """Check the length and the nesting depth of a list of blocks.

    Raises:
        ValueError: if it is too long or nested too deep.
    """
    if count(blocks) > MOST_BLOCKS:
        raise ValueError(f"must be {MOST_BLOCKS} blocks or fewer with all repeats")
    if depth(blocks) > DEEPEST:
        raise ValueError(f"must be {DEEPEST} lists in one another or fewer")
    return blocks


def leaves(blocks: Iterable[AnyBlock], key: str) -> list[tuple[str, AnyBlock]]:
    """Every block with its key, in the order of the data flow; lists and repeats are unrolled."""
    found = []
    for index, block in enumerate(blocks):
        name = f"{key}[{index}]"
        for _ in range(block.repeat):
            found += leaves(block.blocks, f"{name}.blocks") if isinstance(block, Group) else [(name, block)]
    return found
