"""The schema of a configuration: every key of every group."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_serializer,
)

from vae_lab.config.base import Count, Node, PartialNode, Section, Width
from vae_lab.config.vocabulary import Activation, AnyBlock, ForeignBlock, Normalization, leaves, not_too_many

# These do not change what a run computes: they are part neither of a cell's name nor of its checksum.
NOT_IDENTIFYING = (
    "seed",
    "name",
    "experiment",
    "logger",
    "callbacks",
    "metrics",
    "plan",
    "data.root",
    "data.workers",
    "data.in_memory",
)

Target = Annotated[str, Field(alias="_target_")]


class Network(Section):
    """A list of blocks, with the activation and the normalisation they share.

    `width` multiplies all widths. A valid configuration has them multiplied, and no `width`.
    """

    width: Annotated[float | None, Field(gt=0, le=64, exclude=True)] = None
    activation: Activation = "leaky_relu"
    normalization: Normalization = "batch"
    blocks: Annotated[list[AnyBlock], Field(min_length=1), AfterValidator(not_too_many)]


class EncoderConfig(Network):
    target: Target = "vae_lab.networks.Encoder"


class DecoderConfig(Network):
    """The blocks, and the layer that makes the image of the last map: a convolution, or one that doubles the map."""

    target: Target = "vae_lab.networks.Decoder"
    head: Literal["conv", "up"] = "conv"

    @model_serializer(mode="wrap")
    def _leave_out_the_default(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # As in a block: earlier configurations keep their checksums.
        return {key: value for key, value in handler(self).items() if (key, value) != ("head", "conv")}


def _grey_or_colour(shape: list[int]) -> list[int]:
    if shape[0] not in (1, 3):
        raise ValueError("must have 1 channel (grey) or 3 (colour)")
    return shape


class DataConfig(Section):
    target: Target
    dataset: str
    root: str | None
    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    train_images: Count
    test_images: Count
    num_train: Count
    num_val: Annotated[int, Field(ge=0, le=10**9)]
    num_test: Count
    subset: Literal["first", "random", "stratified"]
    subset_seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    batch_size: Width


class FolderConfig(Section):
    target: Target
    root: str
    dataset: str
    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3), AfterValidator(_grey_or_colour)]
    num_train: Count
    num_val: Annotated[int, Field(ge=0, le=10**9)]
    num_test: Count
    subset_seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    batch_size: Width
    workers: Annotated[int, Field(ge=0, le=1024)]
    in_memory: bool | None = None


class ForeignData(Node):
    """A user's own data module: what the networks and the schedules must know of it."""

    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    num_train: Annotated[Count, Field(strict=True)]
    batch_size: Annotated[Width, Field(strict=True)]


class LatentConfig(Section):
    target: Target
    dim: Width


def _once_each(values: list[int]) -> list[int]:
    if len({*values}) < len(values):
        raise ValueError("must have each number once")
    return values


def _whose(value: Any) -> str:
    target = value.get("_target_") if isinstance(value, Mapping) else getattr(value, "target", None)
    return "foreign" if isinstance(target, str) and not target.startswith("vae_lab.") else "ours"


def _which_data(value: Any) -> str:
    target = value.get("_target_") if isinstance(value, Mapping) else getattr(value, "target", None)
    return "folder" if target == "vae_lab.data.FolderData" else _whose(value)


Ours = TypeVar("Ours", bound=BaseModel)
Foreign = TypeVar("Foreign", bound=BaseModel)
# Our own classes take the keys of the schema and no others; a user's class takes what it likes.
Either = Annotated[Annotated[Ours, Tag("ours")] | Annotated[Foreign, Tag("foreign")], Discriminator(_whose)]


class References(Section):
    """The networks that `match.encoder` and `match.decoder` name, as their files have them."""

    encoder: Either[EncoderConfig, Node]
    decoder: Either[DecoderConfig, Node]


class MatchConfig(Section):
    """Which cost encoder and decoder are brought to, and whose.

    A run looks the `references` up, so that what it was compared with is part of its configuration.
    """

    cost: Literal["none", "parameters", "flops"] = "none"
    encoder: str = "vanilla"
    decoder: str = "vanilla"
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    references: References | None = None


class ObjectiveConfig(Section):
    target: Target
    partial: Annotated[Literal[True], Field(alias="_partial_")]
    beta: Annotated[float, Field(ge=0)]


Samples = Annotated[int, Field(ge=1, le=10**6)]


class MetricsConfig(Section):
    """Which test metrics beside the losses and those that cost next to nothing."""

    iwae: Annotated[list[Samples], AfterValidator(_once_each)] = Field(default_factory=list)
    frechet: bool = True
    probe: bool = False
    samplers: bool = False

    def covers(self, other: "MetricsConfig") -> bool:
        """Whether whoever computed these has also computed the others."""
        switches = ("frechet", "probe", "samplers")
        return {*self.iwae} >= {*other.iwae} and all(getattr(self, one) >= getattr(other, one) for one in switches)

    def with_all_of(self, other: "MetricsConfig") -> "MetricsConfig":
        """These and the others."""
        return MetricsConfig(
            iwae=sorted({*self.iwae, *other.iwae}),
            frechet=self.frechet or other.frechet,
            probe=self.probe or other.probe,
            samplers=self.samplers or other.samplers,
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
    # In 16 bits alone a mean over a data set has two or three digits.
    if type(value) not in (str, int) or value in ("16-true", "bf16-true"):
        raise ValueError("must be 32-true, 64-true, bf16-mixed, 16-mixed or another mixed precision")
    return value


MOST_DEVICES = 1024
STRATEGIES = ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""How several processes train one run: Lightning's names for copies of the model whose gradients are averaged."""


class TrainerConfig(BaseModel):
    """Arguments of Lightning's `Trainer`, and the number of CPU threads of a process."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    # What a run folder holds depends on these.
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
        """What goes to `Trainer`, under its names."""
        left_out = {"threads"}
        if self.processes == 1 and self.is_shared:
            left_out.add("strategy")  # one process is an ordinary run
        return self.model_dump(exclude=left_out)

    @property
    def processes(self) -> int:
        """How many train a run together."""
        return len(self.devices) if isinstance(self.devices, list) else int(self.devices)

    @property
    def is_shared(self) -> bool:
        """Whether the strategy is one of several processes."""
        return (self.model_extra or {}).get("strategy") in STRATEGIES


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value  # name=5


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name):
        raise ValueError("must be one folder name of letters, digits and . _ + -, beginning with a letter or digit")
    return name


class Config(Section):
    """The whole configuration of one run, as `config.yaml` holds it."""

    name: Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_folder_name)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    data: Annotated[
        Annotated[DataConfig, Tag("ours")]
        | Annotated[FolderConfig, Tag("folder")]
        | Annotated[ForeignData, Tag("foreign")],
        Discriminator(_which_data),
    ]
    encoder: Either[EncoderConfig, Node]
    latent: Either[LatentConfig, Node]
    decoder: Either[DecoderConfig, Node]
    match: MatchConfig = MatchConfig()
    objective: Either[ObjectiveConfig, PartialNode]
    optimizer: OptimizerConfig
    scheduler: PartialNode | None = None
    trainer: TrainerConfig
    logger: dict[str, Node] | None = None
    callbacks: dict[str, Node] | None = None
    metrics: MetricsConfig = MetricsConfig()
    plan: bool = False

    @property
    def latent_dim(self) -> int:
        """Z, the number of latent dimensions; 0 for a latent space of another class that does not say."""
        return self.latent.dim if isinstance(self.latent, LatentConfig) else 0

    @property
    def likelihood_variance(self) -> float | None:
        """σ² of the Gaussian decoder that β stands for; None where it stands for none."""
        beta = getattr(self.objective, "beta", None) if isinstance(self.objective, ObjectiveConfig) else None
        return likelihood_variance(beta, self.data.image_shape, self.latent_dim) if beta and self.latent_dim else None

    def container(self) -> dict[str, Any]:
        """Plain containers, every default filled in: what `validate` takes."""
        plain = self.model_dump(mode="json", exclude={"plan"})
        if self.match.cost == "none":  # nothing to be told, and earlier configurations keep their checksums
            del plain["match"]
        return plain

    def identity(self) -> dict[str, Any]:
        """The flattened keys that decide what a run computes, the seed left out."""
        container = self.container()
        if self.trainer.is_shared:  # which GPUs, and how the processes find their gradients, changes nothing
            container["trainer"]["devices"] = self.trainer.processes
            del container["trainer"]["strategy"]
        return {
            key: value
            for key, value in flatten(container).items()
            if not any(key == free or key.startswith(f"{free}.") for free in NOT_IDENTIFYING)
        }

    def sha256(self) -> str:
        """Checksum of `identity`: equal for the seeds of a cell."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def nodes(self) -> dict[str, BaseModel]:
        """Everything that is built from a `_target_`, by its key."""
        found: dict[str, BaseModel] = {
            key: getattr(self, key)
            for key in ("data", "encoder", "latent", "decoder", "objective", "optimizer", "scheduler")
            if getattr(self, key) is not None
        }
        for group in ("logger", "callbacks"):
            found |= {f"{group}.{key}": node for key, node in (getattr(self, group) or {}).items()}
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
