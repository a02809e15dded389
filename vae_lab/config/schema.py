"""The schema of a configuration: every key of every group."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias, TypeVar, Union, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_serializer,
    model_validator,
)

from vae_lab.config import names, signatures
from vae_lab.config.base import Background, Binarize, Count, Node, PartialNode, Section, Seed, Target, Width
from vae_lab.config.identity import CHANGES_RESULTS, is_free, is_place
from vae_lab.config.published import Published
from vae_lab.config.versions import as_first_written
from vae_lab.config.vocabulary import (
    Activation,
    AnyBlock,
    ForeignBlock,
    Initialization,
    Normalization,
    leaves,
    not_too_many,
)


class Network(Section):
    """A list of blocks, with the activation and the normalisation they share.

    `width` multiplies all widths. Validation applies it and then removes it.
    """

    width: Annotated[float | None, Field(gt=0, le=64, exclude=True)] = None
    activation: Activation = "leaky_relu"
    normalization: Normalization = "batch"
    initialization: Initialization = "torch"
    blocks: Annotated[list[AnyBlock], Field(min_length=1), AfterValidator(not_too_many)]

    @model_serializer(mode="wrap")
    def _leave_out_later_defaults(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # As in a block: earlier configurations keep their checksums.
        later = {"initialization": "torch", "head": "conv"}
        return {key: value for key, value in handler(self).items() if (key, value) not in later.items()}


class EncoderConfig(Network):
    target: Target = "vae_lab.Encoder"


class DecoderConfig(Network):
    """The blocks, and the layer that makes the image from the last map: a convolution, or one that doubles the map."""

    target: Target = "vae_lab.Decoder"
    head: Literal["conv", "up"] = "conv"


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value  # name=5


def _grey_or_colour(shape: list[int]) -> list[int]:
    if shape[0] not in (1, 3):
        raise ValueError("must have 1 channel (grey) or 3 (colour)")
    return shape


class DataConfig(Section):
    target: Target
    dataset: str
    root: Annotated[str | None, BeforeValidator(_number_as_text)]
    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    train_images: Count
    test_images: Count
    num_train: Count
    num_val: Annotated[int, Field(ge=0, le=10**9)]
    num_test: Count
    subset: Literal["first", "random", "stratified"]
    subset_seed: Seed
    batch_size: Width
    binarize: Binarize = "none"
    binarize_seed: Seed = 0


class FolderConfig(Section):
    target: Target
    root: Annotated[str, BeforeValidator(_number_as_text)]
    dataset: str
    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3), AfterValidator(_grey_or_colour)]
    num_train: Count
    num_val: Annotated[int, Field(ge=0, le=10**9)]
    num_test: Count
    subset_seed: Seed
    batch_size: Width
    binarize: Binarize = "none"
    binarize_seed: Seed = 0
    background: Background = "white"
    workers: Annotated[int, Field(ge=0, le=1024)]
    in_memory: bool | None = None


class ForeignData(Node):
    """A user's own data module, with the values that networks and schedules need."""

    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    num_train: Annotated[Count, Field(strict=True)]
    batch_size: Annotated[Width, Field(strict=True)]


class Observer(Node):
    """A callback or logger of any class. The key `changes_results` is not for the class: see `config.identity`."""

    @model_validator(mode="after")
    def _check_changes_results(self) -> Self:
        value = (self.model_extra or {}).get(CHANGES_RESULTS, False)
        if not isinstance(value, bool):
            raise ValueError(f"{CHANGES_RESULTS} must be true or false, but is {value!r}")
        return self


def _once_each(values: list[int]) -> list[int]:
    if len({*values}) < len(values):
        raise ValueError("must have each number once")
    return values


def _target_of(value: Any) -> Any:
    return value.get("_target_") if isinstance(value, Mapping) else getattr(value, "target", None)


def _owner(value: Any) -> str:
    target = _target_of(value)
    return "foreign" if isinstance(target, str) and not target.startswith("vae_lab.") else "ours"


def _data_tag(value: Any) -> str:
    return "folder" if _target_of(value) == "vae_lab.FolderData" else _owner(value)


Ours = TypeVar("Ours", bound=BaseModel)
Foreign = TypeVar("Foreign", bound=BaseModel)
# vae_lab's own classes take only the keys of their schema; a user's class takes any keys.
Either = Annotated[Annotated[Ours, Tag("ours")] | Annotated[Foreign, Tag("foreign")], Discriminator(_owner)]


def _extension(family: str) -> Any:
    """The type of a family's nodes: vae_lab's classes by their signatures, or any other class."""
    ours = [Annotated[schema, Tag(name)] for name, schema in signatures.schemas(family).items()]
    foreign = Observer if family == "callbacks" else Node

    def tag_of(value: Any) -> str | None:
        target = _target_of(value)
        if not isinstance(target, str):
            return "foreign"
        name = target.removeprefix("vae_lab.")
        return "foreign" if name == target or name not in signatures.schemas(family) else name

    return Annotated[Union[(*ours, Annotated[foreign, Tag("foreign")])], Discriminator(tag_of)]


if TYPE_CHECKING:
    LatentNode: TypeAlias = Node
    PosteriorNode: TypeAlias = Node
    PriorNode: TypeAlias = Node
    LikelihoodNode: TypeAlias = Node
    ObjectiveNode: TypeAlias = Node
    CallbackNode: TypeAlias = Observer
else:
    LatentNode, PosteriorNode, PriorNode, LikelihoodNode, ObjectiveNode, CallbackNode = map(_extension, names.FAMILIES)


class References(Section):
    """The networks that `match.encoder` and `match.decoder` name, as their files define them."""

    encoder: Either[EncoderConfig, Node]
    decoder: Either[DecoderConfig, Node]


class MatchConfig(Section):
    """The cost that encoder and decoder are matched in, and the networks that they are matched to.

    A run looks up the `references`, so that the networks it was matched to are part of its configuration.
    """

    cost: Literal["none", "parameters", "flops"] = "none"
    encoder: str = "vanilla"
    decoder: str = "vanilla"
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    references: References | None = None


Samples = Annotated[int, Field(ge=1, le=10**6)]


class FurtherMetric(Node):
    """A user's own test metric: a function, the format of its figure, and further keys as its arguments.

    The function is called as `f(vae, batches, **arguments)`, with the model in evaluation mode and an iterable over
    batches of test images (b, c, h, w), and returns a number or None.
    """

    heading: str
    unit: str = ""
    digits: Annotated[int, Field(ge=0, le=10)] = 3
    better: Literal["lower", "higher"] | None = None
    meaning: str

    def call(self) -> PartialNode:
        """The function with its arguments."""
        return PartialNode.model_validate({"_target_": self.target, "_partial_": True} | (self.model_extra or {}))


class MetricsConfig(Section):
    """The optional test metrics; the losses and the cheap metrics are always computed."""

    iwae: Annotated[list[Samples], AfterValidator(_once_each)] = Field(default_factory=list)
    frechet: bool = True
    probe: bool = False
    samplers: bool = False
    further: dict[str, FurtherMetric] = Field(default_factory=dict)

    def covers(self, other: "MetricsConfig") -> bool:
        """Whether these metrics include the other ones."""
        switches = ("frechet", "probe", "samplers")
        return (
            {*self.iwae} >= {*other.iwae}
            and all(getattr(self, one) >= getattr(other, one) for one in switches)
            and all(self.further.get(name) == node for name, node in other.further.items())
        )

    def with_all_of(self, other: "MetricsConfig") -> "MetricsConfig":
        """The union of these and the others."""
        return MetricsConfig(
            iwae=sorted({*self.iwae, *other.iwae}),
            frechet=self.frechet or other.frechet,
            probe=self.probe or other.probe,
            samplers=self.samplers or other.samplers,
            further=other.further | self.further,
        )


class OptimizerConfig(PartialNode):
    lr: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]


def _devices(value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    whole = all(type(number) is int and 0 <= number < MOST_DEVICES for number in numbers)
    once_each = whole and len({*numbers}) == len(numbers) > 0
    if value != "1" and not (once_each and (isinstance(value, list) or value > 0)):
        raise ValueError("must be a number of processes, 1 to 1023, or a list of GPUs, each once, such as [0]")
    return value


def _precision(value: Any) -> Any:
    # In pure 16-bit precision a mean over a data set has only two or three digits.
    if type(value) not in (str, int) or value in ("16-true", "bf16-true"):
        raise ValueError("must be 32-true, 64-true, bf16-mixed, 16-mixed or another mixed precision")
    return value


MOST_DEVICES = 1024
STRATEGIES = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Strategies for several processes per run: Lightning's names for model copies with averaged gradients."""


class TrainerConfig(BaseModel):
    """Arguments of Lightning's `Trainer`, and the number of CPU threads of a process."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    # The content of a run folder depends on these.
    RESERVED: ClassVar = (
        "callbacks",
        "logger",
        "default_root_dir",
        "enable_checkpointing",
        "barebones",
        "fast_dev_run",
        "plugins",
    )

    accelerator: str
    devices: Annotated[Any, AfterValidator(_devices)]
    precision: Annotated[Any, AfterValidator(_precision)]
    max_epochs: Count
    threads: Annotated[int, Field(ge=1, le=1024)]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `Trainer`."""
        left_out = {"threads"}
        if self.processes == 1 and self.is_shared:
            left_out.add("strategy")  # one process is an ordinary run
        return self.model_dump(exclude=left_out)

    @property
    def processes(self) -> int:
        """The number of processes that train a run together."""
        return len(self.devices) if isinstance(self.devices, list) else int(self.devices)

    @property
    def is_shared(self) -> bool:
        """Whether the strategy is for several processes."""
        return (self.model_extra or {}).get("strategy") in STRATEGIES


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError("must be one folder name of letters, digits and . _ + -, beginning with a letter or digit")
    if len(name) > 100 or len(name.encode()) > 200:
        raise ValueError("must have at most 100 characters and 200 bytes")
    return name


PARTS = (
    "data", "encoder", "latent", "posterior", "prior", "decoder", "likelihood", "objective", "optimizer", "scheduler",
)  # fmt: skip
"""The sections that are each built from one `_target_`."""


SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "folder": FolderConfig,
    "encoder": EncoderConfig,
    "decoder": DecoderConfig,
    "match": MatchConfig,
    "metrics": MetricsConfig,
    "trainer": TrainerConfig,
}
"""The sections with known keys; `folder` is the other kind of `data`."""


Source = Literal["init", "order", "noise", "subset"]
SOURCES: tuple[Source, ...] = get_args(Source)
"""What a seed can change: the initial weights, the order of the images, the noise of training, the training images."""
USUAL_SOURCES: tuple[Source, ...] = ("init", "order", "noise")


def _several(given: Any) -> Any:
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else given


def _in_order(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    return tuple(source for source in SOURCES if source in sources)


class Config(Section):
    """The whole configuration of one run, as `config.yaml` holds it."""

    name: Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_folder_name)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    vary: Annotated[tuple[Source, ...], BeforeValidator(_several), Field(min_length=1), AfterValidator(_in_order)] = (
        USUAL_SOURCES
    )
    """What another seed changes; the rest is as with seed 0."""
    data: Annotated[
        Annotated[DataConfig, Tag("ours")]
        | Annotated[FolderConfig, Tag("folder")]
        | Annotated[ForeignData, Tag("foreign")],
        Discriminator(_data_tag),
    ]
    encoder: Either[EncoderConfig, Node]
    latent: LatentNode
    posterior: PosteriorNode
    prior: PriorNode
    decoder: Either[DecoderConfig, Node]
    likelihood: LikelihoodNode
    match: MatchConfig = MatchConfig()
    objective: ObjectiveNode
    optimizer: OptimizerConfig
    scheduler: PartialNode | None = None
    trainer: TrainerConfig
    logger: dict[str, Observer] | None = None
    callbacks: dict[str, CallbackNode] | None = None
    metrics: MetricsConfig = MetricsConfig()
    test_weights: Literal["last", "best"] = "last"
    """The weights that are tested and kept: those of the last epoch, or of the one with the lowest validation total."""
    published: Published | None = None
    plan: bool = False

    @property
    def latent_dim(self) -> int:
        """Z, the number of latent dimensions; 0 for a user's own latent space without `dim` or `shape`."""
        dim, shape = getattr(self.latent, "dim", 0), getattr(self.latent, "shape", ())
        if isinstance(shape, list | tuple) and shape and all(type(side) is int for side in shape):
            return math.prod(shape)
        return dim if isinstance(dim, int) else 0

    @property
    def pixels(self) -> int:
        """D, the number of values in an image."""
        return math.prod(self.data.image_shape)

    @property
    def is_fashion_mnist(self) -> bool:
        """Whether the images are of the kind that the classifier that ships was trained on."""
        data = self.data
        is_ours = isinstance(data, DataConfig) and data.dataset.rpartition(".")[2] == "FashionMNIST"
        return is_ours and data.image_shape == [1, 28, 28]

    @property
    def asked_sigma(self) -> float | None:
        """σ where `objective.sigma` gives it instead of β."""
        sigma: float | None = getattr(self.objective, "sigma", None)
        return sigma if signatures.beta_sets_sigma(self.objective.target) else None

    @property
    def implied_sigma(self) -> float | None:
        """σ of the Gaussian likelihood that β implies under `mse_kl`; None where it implies none."""
        if not signatures.beta_sets_sigma(self.objective.target):
            return None
        if self.asked_sigma is not None:
            return self.asked_sigma
        beta = getattr(self.objective, "beta", None)
        if not beta or not self.latent_dim:
            return None
        return likelihood_variance(beta, self.data.image_shape, self.latent_dim) ** 0.5

    def container(self) -> dict[str, Any]:
        """Plain containers with every default filled in, as `validate` takes them."""
        plain = self.model_dump(mode="json", exclude={"plan"})
        if self.match.cost == "none":  # it says nothing, and earlier configurations keep their checksums
            del plain["match"]
        for key, default in (("test_weights", "last"), ("published", None), ("vary", [*USUAL_SOURCES])):
            if plain[key] == default:
                del plain[key]
        return plain

    def sigma_of(self, asked: Any) -> Any:
        """The value of a Gaussian's `likelihood.sigma`: `auto` is σ from β under `mse_kl`, elsewhere it is learned."""
        if asked not in ("auto", "from_beta"):
            return asked
        return self.implied_sigma if signatures.beta_sets_sigma(self.objective.target) else "learned"

    def seed_of(self, source: Source) -> int:
        """The seed of a source of chance; 0 for one that `vary` does not name."""
        return self.seed if source in self.vary else 0

    def identity(self) -> dict[str, Any]:
        """The flattened keys that determine what a run computes, without the seed."""
        flat = flatten(as_first_written(self))
        if "subset" in self.vary:
            flat.pop("data.subset_seed", None)
        own = self.name, self.seed
        return {key: value for key, value in flat.items() if not is_free(key) and not is_place(key, value, *own)}

    def sha256(self) -> str:
        """Checksum of `identity`: equal for the seeds of a cell."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def nodes(self) -> dict[str, BaseModel]:
        """Key → node, for every object built from a `_target_`."""
        found: dict[str, BaseModel] = {key: getattr(self, key) for key in PARTS if getattr(self, key) is not None}
        for group in ("logger", "callbacks"):
            found |= {f"{group}.{key}": node for key, node in (getattr(self, group) or {}).items()}
        found |= {f"metrics.further.{key}": node.call() for key, node in self.metrics.further.items()}
        for side in ("encoder", "decoder"):
            blocks = getattr(self, side).blocks if isinstance(getattr(self, side), Network) else []
            found |= {key: block for key, block in leaves(blocks, f"{side}.blocks") if isinstance(block, ForeignBlock)}
        return found


def likelihood_variance(beta: float, image_shape: Sequence[int], latent_dim: int) -> float:
    """σ² = β·D / (2·Z): under N(x̂, σ²·1) the total times Z/β is, up to a constant, the negative ELBO in nats."""
    return beta * math.prod(image_shape) / (2 * latent_dim)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves: {'latent.dim': 256, 'encoder.blocks[0].down': 16, …}."""
    if isinstance(tree, Mapping) and tree:
        parts = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree:
        parts = [(f"{prefix}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {key: leaf for name, value in parts for key, leaf in flatten(value, name).items()}
