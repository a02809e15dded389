"""The vocabulary of an architecture file: what a word is, and what lists of them are.

Each word is a class under `@word("…")`, in a file of its own in `model/blocks/`: what it may say, what it makes of a
shape, and its module. torch is imported only where a module is built.
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

Activation = Literal["leaky_relu", "relu", "elu", "gelu", "silu", "tanh", "none"]
Normalization = Literal["batch", "group", "layer", "none"]
Size = tuple[int, ...]
"""Height and width of a map."""
Shape = tuple[int, ...]
"""A vector's (features,) or a map's (channels, height, width)."""

MOST_BLOCKS = 1000
DEEPEST = 20
"""Lists of blocks in one another, of which Hydra reads about forty."""
WRITTEN = ("kernel",)
"""Arguments that a stored configuration has also at their defaults."""

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
    """Half of each side, rounded up: what a stride of 2 leaves of a map, and what is doubled to reach it."""
    return tuple(-(-side // 2) for side in size)


def doubled(size: Size) -> Size:
    """Twice each side."""
    return tuple(2 * side for side in size)


def strided(size: Size, stride: int, kernel: int = 1, dilation: int = 1) -> Size:
    """What a convolution leaves of a map: the size divided by the stride, rounded up, or down by an even kernel."""
    reach = dilation * (kernel - 1)
    return tuple((side - reach + 2 * (reach // 2) - 1) // stride + 1 for side in size)


class FitError(ValueError):
    """A block that does not fit what comes before it or what must come out."""


def describe(shape: Shape) -> str:
    """A shape as an error message says it."""
    return f"a vector of {shape[0]}" if len(shape) == 1 else "a map of " + "×".join(map(str, shape))


class Block(Section):
    """A word of the vocabulary."""

    word: ClassVar[str]
    repeat: Repeat = 1

    takes: ClassVar[Literal["map", "vector", "either"]] = "map"
    """What shape may come to it."""
    scales: ClassVar[bool] = True
    """Whether the word's number is a width, which a matched comparison may change."""
    keeps_channels: ClassVar[bool] = False
    """Whether that width stays inside the block, which puts out as many channels as it gets."""
    grows: ClassVar[int] = 1
    """By how much it multiplies the sides of a map."""

    @property
    def value(self) -> Any:
        """What stands after the word: 16 of `down: 16`."""
        return getattr(self, self.word)

    def size_before(self, size: Size) -> Size:
        """The size of the map that it needs to end with `size`; a decoder finds its sizes so."""
        return size

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """What it makes of one image's shape; `size` is that which the map must end with in a decoder."""
        return shape

    def build(self, place: "Place") -> Any:
        """The module, a `torch.nn.Module`, at its place in a network.

        Raises:
            FitError: if it cannot take what comes to that place.
        """
        raise NotImplementedError

    def divisor(self) -> int:
        """What the width of the block itself must be a multiple of."""
        return 1

    def divisor_before(self) -> int:
        """What the channels that come in must be a multiple of."""
        return 1

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # A word that learns a new argument must leave the checksums of earlier configurations as they were.
        fields = type(self).model_fields
        return {key: value for key, value in handler(self).items() if key in WRITTEN or value != fields[key].default}


class Styled(Block):
    """A block that is normalised and activated; what it leaves out it takes from its network."""

    activation: Activation | None = None
    normalization: Normalization | None = None


class Strided(Styled):
    """A styled block that may take every `stride`-th position only, which divides the map, rounding up."""

    stride: Stride = 1

    def size_before(self, size: Size) -> Size:
        """`stride` times as large."""
        return tuple(self.stride * side for side in size)


@dataclass(frozen=True)
class Style:
    """What the layers of a network share unless a block says otherwise."""

    activation: str
    normalization: str

    def of(self, block: Block) -> "Style":
        """The style with the block's own choices in it."""
        return Style(
            getattr(block, "activation", None) or self.activation,
            getattr(block, "normalization", None) or self.normalization,
        )

    @property
    def bias(self) -> bool:
        """Whether a layer needs a bias of its own: a norm after it has one."""
        return self.normalization == "none"


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


def halvable(block: Block, place: Place, times: int = 1) -> None:
    """That a map can be halved so often.

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
    """That a map is large enough for an even kernel.

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
"""A sentence on each word that two blocks have."""

Kind = TypeVar("Kind", bound=Block)


def word(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Make a schema the meaning of a word."""

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
    """A list of blocks as one: repeated together, or with a way around it."""

    blocks: Annotated[list["AnyBlock"], Field(min_length=1)]
    skip: bool = False

    scales = False

    def size_before(self, size: Size) -> Size:
        """What its blocks need, from the last to the first."""
        for block in reversed(unrolled(self.blocks)):
            size = block.size_before(size)
        return size


class ForeignBlock(Node):
    """Any `torch.nn.Module` class; the keys beside `repeat` and `grows` are its arguments."""

    repeat: Repeat = 1
    grows: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    """By how much it multiplies the sides of a map, which a decoder must know."""

    def size_before(self, size: Size) -> Size:
        """`grows` times smaller, rounded up."""
        return tuple(-(-side // self.grows) for side in size)

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in ("repeat", "grows") or value != 1}


def block_name(block: Any) -> str | None:
    """The vocabulary's word for a block (validated or as it stands in YAML), `_target_`, or None."""
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
    """The blocks of a list, each as often as its `repeat` says."""
    return [block for block in blocks for _ in range(block.repeat)]


def count(blocks: Iterable[AnyBlock]) -> int:
    """How many blocks a list is, with repeats and the lists in it."""
    return sum(block.repeat * (count(block.blocks) if isinstance(block, Group) else 1) for block in blocks)


def depth(blocks: Iterable[AnyBlock]) -> int:
    """How many lists a list of blocks is deep, itself among them."""
    return 1 + max((depth(block.blocks) for block in blocks if isinstance(block, Group)), default=0)


def not_too_many(blocks: list[AnyBlock]) -> list[AnyBlock]:
    """A list of blocks that can be built.

    Raises:
        ValueError: if it is longer than any network, or nested deeper.
    """
    if count(blocks) > MOST_BLOCKS:
        raise ValueError(f"must be {MOST_BLOCKS} blocks or fewer with all repeats")
    if depth(blocks) > DEEPEST:
        raise ValueError(f"must be {DEEPEST} lists in one another or fewer")
    return blocks


def leaves(blocks: Iterable[AnyBlock], key: str) -> list[tuple[str, AnyBlock]]:
    """Every block in the order that data takes through them, each with its key, lists and repeats unrolled."""
    found = []
    for index, block in enumerate(blocks):
        name = f"{key}[{index}]"
        for _ in range(block.repeat):
            found += leaves(block.blocks, f"{name}.blocks") if isinstance(block, Group) else [(name, block)]
    return found
