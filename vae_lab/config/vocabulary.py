"""The vocabulary of an architecture file: the words, what each may say. `blocks` has their modules.

A word is a class here, under `@word("…")`, and a builder in `blocks/builders.py`, under `@builds(…)`.
"""

from collections.abc import Callable, Iterable, Mapping
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

from vae_lab.config.base import Node, Section, Width

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


class Block(Section):
    """A word of the vocabulary."""

    word: ClassVar[str]
    repeat: Repeat = 1

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


BLOCKS: dict[str, type[Block]] = {}
"""Word to schema, in the order of the guide."""

Kind = TypeVar("Kind", bound=Block)


def word(name: str) -> Callable[[type[Kind]], type[Kind]]:
    """Make a schema the meaning of a word."""

    def register(kind: type[Kind]) -> type[Kind]:
        assert name not in BLOCKS, name
        assert name in kind.model_fields, f"{kind.__name__} needs a field {name!r} for what follows the word"
        kind.word = name
        BLOCKS[name] = kind
        return kind

    return register


@word("conv")
class Conv(Strided):
    """Convolution; without a stride it keeps the size of the map."""

    conv: Width
    kernel: StridedKernel = 3
    dilation: Annotated[int, Field(ge=1, le=16)] = 1
    groups: Width = 1

    def divisor(self) -> int:
        """The groups."""
        return self.groups

    def divisor_before(self) -> int:
        """The groups."""
        return self.groups

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, the size by the stride."""
        return (self.conv, *strided(shape[1:], self.stride, self.kernel, self.dilation))


@word("down")
class Down(Styled):
    """Convolution with stride 2: halves the map, rounding up (an even kernel rounds down)."""

    down: Width
    kernel: AnyKernel = 3

    def size_before(self, size: Size) -> Size:
        """Twice as large."""
        return tuple(2 * side for side in size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, half the size."""
        return (self.down, *strided(shape[1:], 2, self.kernel))


@word("up")
class Up(Styled):
    """Transposed convolution with stride 2: doubles the map, or ends one short where the image asks for it."""

    up: Width
    kernel: AnyKernel = 3

    grows = 2

    def size_before(self, size: Size) -> Size:
        """Half as large."""
        return halved(size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, twice the size."""
        return (self.up, *(size or doubled(shape[1:])))


@word("resize")
class Resize(Styled):
    """Resize-convolution (Odena et al. 2016): the map is enlarged as a picture is, then convolved."""

    resize: Width
    kernel: OddKernel = 3
    mode: Literal["nearest", "bilinear"] = "nearest"

    grows = 2

    def size_before(self, size: Size) -> Size:
        """Half as large."""
        return halved(size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, twice the size."""
        return (self.resize, *(size or doubled(shape[1:])))


@word("pool")
class Pool(Block):
    """Maximum or average over 2×2 positions: halves the map, rounding up."""

    pool: Literal["max", "avg"]

    scales = False

    def size_before(self, size: Size) -> Size:
        """Twice as large."""
        return tuple(2 * side for side in size)

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Half the size."""
        return (shape[0], *halved(shape[1:]))


@word("global_pool")
class GlobalPool(Block):
    """Maximum or average over the whole map: a vector of its channels."""

    global_pool: Literal["max", "avg"]

    scales = False

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """The channels alone."""
        return shape[:1]


@word("encdec")
class EncDec(Styled):
    """Encoder-decoder block: strided convolutions to `encdec` channels and transposed ones back."""

    encdec: Width
    kernel: OddKernel = 3
    depth: Annotated[int, Field(ge=1, le=20)] = 1
    skip: bool = False

    keeps_channels = True


@word("residual")
class Residual(Strided):
    """Residual block (He et al. 2016): two or three convolutions and a way around them."""

    residual: Width
    kernel: OddKernel = 3
    kind: Literal["post", "pre", "bottleneck"] = "post"

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, the size by the stride."""
        return (self.residual, *strided(shape[1:], self.stride))


@word("depthwise")
class Depthwise(Strided):
    """Depthwise-separable convolution (Howard et al. 2017): one filter a channel, then a 1×1 convolution."""

    depthwise: Width
    kernel: StridedKernel = 3

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, the size by the stride."""
        return (self.depthwise, *strided(shape[1:], self.stride, self.kernel))


@word("convnext")
class ConvNext(Block):
    """ConvNeXt block (Liu et al. 2022), with its own activation and normalisation unless the block names others."""

    convnext: Width
    kernel: OddKernel = 7
    expansion: Annotated[int, Field(ge=1, le=64)] = 4
    activation: Activation = "gelu"
    normalization: Normalization = "layer"

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """Its channels, the size as it was."""
        return (self.convnext, *shape[1:])


@word("squeeze_excitation")
class SqueezeExcitation(Block):
    """Each channel weighted by what all say together (Hu et al. 2018); the number is the reduction."""

    squeeze_excitation: Width
    activation: Activation | None = None

    scales = False


@word("attention")
class Attention(Block):
    """Self-attention between all positions of the map (Vaswani et al. 2017); the number is that of the heads."""

    attention: Width
    normalization: Normalization = "layer"

    scales = False

    def divisor_before(self) -> int:
        """The heads share the channels evenly."""
        return self.attention


@word("dropout")
class Dropout(Block):
    """Each number set to zero with this probability while training (Srivastava et al. 2014)."""

    dropout: Annotated[float, Field(ge=0, lt=1)]

    scales = False


@word("dense")
class Dense(Styled):
    """Fully connected layer; a map is flattened for it."""

    dense: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """A vector."""
        return (self.dense,)


@word("unflatten")
class Unflatten(Styled):
    """Dense layer from a vector onto a map of `unflatten` channels, which the blocks after it grow to the image."""

    unflatten: Width

    def after(self, shape: Shape, size: Size | None) -> Shape:
        """A map of its channels."""
        return (self.unflatten, *(size or (1, 1)))


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
