"""The schema of a configuration: every key of every group."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from vae_lab.config.base import Count, Node, PartialNode, Section, Width
from vae_lab.config.vocabulary import Activation, AnyBlock, Normalization

# These do not change what a run computes: they are part neither of a cell's name nor of its checksum.
NOT_IDENTIFYING = ("seed", "name", "experiment", "logger", "callbacks", "metrics", "data.root")

Target = Annotated[str, Field(alias="_target_")]


class Network(Section):
    """A list of blocks, with the activation and the normalisation they share."""

    activation: Activation = "leaky_relu"
    normalization: Normalization = "batch"
    blocks: Annotated[list[AnyBlock], Field(min_length=1)]


class EncoderConfig(Network):
    target: Target = "vae_lab.networks.Encoder"


class DecoderConfig(Network):
    target: Target = "vae_lab.networks.Decoder"


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


class ForeignData(Node):
    """A user's own data module: what the networks and the schedules must know of it."""

    image_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    num_train: Annotated[Count, Field(strict=True)]
    batch_size: Annotated[Width, Field(strict=True)]


class LatentConfig(Section):
    target: Target
    dim: Width


class ObjectiveConfig(Section):
    target: Target
    partial: Annotated[Literal[True], Field(alias="_partial_")]
    beta: Annotated[float, Field(ge=0)]


class OptimizerConfig(PartialNode):
    lr: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]


def _one_device(value: Any) -> Any:
    indices = value if isinstance(value, list) else [0] if value in (1, "1") and value is not True else []
    if len(indices) != 1 or type(indices[0]) is not int:
        raise ValueError("must be 1, or a list with the number of one GPU, such as [0]")
    return value


def _precision(value: Any) -> Any:
    # In 16 bits alone a mean over a data set has two or three digits.
    if type(value) not in (str, int) or value in ("16-true", "bf16-true"):
        raise ValueError("must be 32-true, 64-true, bf16-mixed, 16-mixed or another mixed precision")
    return value


class TrainerConfig(BaseModel):
    """Arguments of Lightning's `Trainer`, and the number of CPU threads."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    # What a run folder holds depends on these.
    RESERVED: ClassVar = (
        "callbacks",
        "logger",
        "default_root_dir",
        "enable_checkpointing",
        "barebones",
        "fast_dev_run",
    )

    accelerator: str
    devices: Annotated[Any, AfterValidator(_one_device)]
    precision: Annotated[Any, AfterValidator(_precision)]
    max_epochs: Count
    threads: Annotated[int, Field(ge=1, le=1024)]

    def arguments(self) -> dict[str, Any]:
        """What goes to `Trainer`, under its names."""
        return self.model_dump(exclude={"threads"})


def _whose(value: Any) -> str:
    target = value.get("_target_") if isinstance(value, Mapping) else getattr(value, "target", None)
    return "foreign" if isinstance(target, str) and not target.startswith("vae_lab.") else "ours"


Ours = TypeVar("Ours", bound=BaseModel)
Foreign = TypeVar("Foreign", bound=BaseModel)
# Our own classes take the keys of the schema and no others; a user's class takes what it likes.
Either = Annotated[Annotated[Ours, Tag("ours")] | Annotated[Foreign, Tag("foreign")], Discriminator(_whose)]


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
    data: Either[DataConfig, ForeignData]
    encoder: Either[EncoderConfig, Node]
    latent: Either[LatentConfig, Node]
    decoder: Either[DecoderConfig, Node]
    objective: Either[ObjectiveConfig, PartialNode]
    optimizer: OptimizerConfig
    scheduler: PartialNode | None = None
    trainer: TrainerConfig
    logger: dict[str, Node] | None = None
    callbacks: dict[str, Node] | None = None

    def container(self) -> dict[str, Any]:
        """Plain containers, every default filled in: what `validate` takes."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """The flattened keys that decide what a run computes, the seed left out."""
        return {
            key: value
            for key, value in flatten(self.container()).items()
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
            for index, block in enumerate(getattr(getattr(self, side), "blocks", [])):
                if isinstance(block, Node):
                    found[f"{side}.blocks[{index}]"] = block
        return found


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves: {'latent.dim': 256, 'encoder.blocks[0].down': 16, …}."""
    if isinstance(tree, Mapping) and tree:
        parts = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree:
        parts = [(f"{prefix}[{index}]", value) for index, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {key: leaf for name, value in parts for key, leaf in flatten(value, name).items()}
