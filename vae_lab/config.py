"""What a configuration may say: schema, ranges, identity of a run. Imports no torch, so that errors come at once."""

import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, cast

import hydra.utils
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_serializer,
)
from pydantic_core import ErrorDetails

PACKAGE = Path(__file__).parent

# These do not change what a run computes: they are part neither of a cell's name nor of its checksum.
NOT_IDENTIFYING = ("seed", "name", "experiment", "logger", "callbacks", "metrics", "data.root")
LONGEST_CELL = 120
MOST_CHOICES = 20
# Set by a sweep for its jobs, which Hydra tells their own number but not how many there are.
SWEEP_RUNS = "VAE_LAB_SWEEP_RUNS"


class Problem(NamedTuple):
    """One thing wrong with a configuration: the key at fault and a sentence about it."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class ConfigError(ValueError):
    """All that is wrong with a configuration, told at once."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def choices(word: str, known: Iterable[str]) -> str:
    """The known words as the end of an error message, the one closest to `word` offered first."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close and len(known) > MOST_CHOICES:
        return f"did you mean '{close[0]}'?"
    return (f"did you mean '{close[0]}'? " if close else "") + f"known: {', '.join(known)}"


# --- The schema --------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A mapping with known keys; values are taken as they are typed, '3' is not 3."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True)


class Node(BaseModel):
    """Anything built from its `_target_`: a class or function of ours, of torch's or of the user's."""

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)

    target: Annotated[str, Field(alias="_target_", pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]


class PartialNode(Node):
    """A node that is called later, with what a configuration cannot hold."""

    partial: Annotated[Literal[True], Field(alias="_partial_")]


Width = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Target = Annotated[str, Field(alias="_target_")]
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


class TrainerConfig(BaseModel):
    """Arguments of Lightning's `Trainer`, and the number of CPU threads."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    # What a run folder holds depends on these.
    RESERVED: ClassVar = ("callbacks", "logger", "default_root_dir", "enable_checkpointing", "barebones")

    accelerator: str
    devices: int | list[int] | str
    precision: str | int
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
    return str(value) if type(value) is int else value  # name=5


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
    scheduler: PartialNode | None
    trainer: TrainerConfig
    logger: dict[str, Node] | None
    callbacks: dict[str, Node] | None

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


# --- Validation --------------------------------------------------------------------------------------------

_KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite_number": "must be a finite number",
    "string": "must be text",
    "bool": "must be true or false",
    "list": "must be a list",
    "dict": "must be a group of keys",
    "model": "must be a group of keys",
}


def validate(raw: Mapping[str, Any]) -> Config:
    """The configuration, checked: keys, types, ranges and what must hold across groups.

    Raises:
        ConfigError: with every problem found, not only the first.
    """
    try:
        config = Config.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError(*(_problem(details) for details in error.errors())) from None
    problems = list(_across_groups(config))
    if problems:
        raise ConfigError(*problems)
    return config


def _problem(error: ErrorDetails) -> Problem:
    location = [part for part in error["loc"] if part not in ("ours", "foreign")]
    if "blocks" in location:  # pydantic puts the block's tag after its index
        after = location.index("blocks") + 2
        location[after:] = location[after + 1 :]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind == "missing":
        return Problem(key, "is missing")
    if kind == "extra_forbidden":
        known = [field for field in _fields(error["loc"][:-1]) if not field.startswith("_")]
        return Problem(key, f"no such key (its value is {value!r}); {choices(str(location[-1]), known)}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        words = list(value) if isinstance(value, Mapping) else [str(value)]
        known = [*BLOCKS, "_target_"]
        odd_one = next((word for word in words if word not in known), "")
        return Problem(key, f"must name exactly one block, but is {value!r}; {choices(odd_one, known)}")
    if kind == "literal_error":
        return Problem(key, f"must be {context['expected']}, but is {value!r}")
    if kind == "value_error":
        return Problem(key, f"{context['error']}, but is {value!r}")
    bounds = {
        "greater_than": "greater than {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than_equal": "at most {le}",
        "too_short": "a list of {min_length} or more",
        "too_long": "a list of {max_length} or fewer",
    }
    if kind in bounds:
        limits = {name: str(limit).removesuffix(".0") for name, limit in context.items()}
        return Problem(key, f"must be {bounds[kind].format(**limits)}, but is {value!r}")
    if kind == "string_pattern_mismatch":
        return Problem(key, f"must be a dotted name such as torch.nn.ReLU, but is {value!r}")
    rule = next((text for name, text in _KINDS.items() if kind.startswith(name)), error["msg"])
    return Problem(key, f"{rule}, but is {value!r}")


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` knows."""
    sections: dict[str, type[BaseModel]] = {
        "data": DataConfig,
        "encoder": EncoderConfig,
        "latent": LatentConfig,
        "decoder": DecoderConfig,
        "objective": ObjectiveConfig,
    }
    model: type[BaseModel] = Config
    if location:
        model = BLOCKS[str(location[-1])] if "blocks" in location else sections[str(location[0])]
    return [field.alias or name for name, field in model.model_fields.items()]


def _across_groups(config: Config) -> Iterable[Problem]:
    data = config.data
    if isinstance(data, DataConfig):
        if data.num_train + data.num_val > data.train_images:
            yield Problem(
                "data.num_train",
                f"num_train + num_val must be at most the {data.train_images:,} images in the training files, "
                f"but is {data.num_train:,} + {data.num_val:,}",
            )
        if data.num_test > data.test_images:
            yield Problem(
                "data.num_test",
                f"must be at most the {data.test_images:,} images in the test files, but is {data.num_test:,}",
            )
    for key in TrainerConfig.RESERVED:
        if key in (config.trainer.model_extra or {}):
            yield Problem(f"trainer.{key}", "is set by vae_lab, since the files of a run depend on it; remove it")


def check_targets(config: Config) -> None:
    """Import every `_target_` and hold the keys beside it against its signature.

    Raises:
        ConfigError: for a target that cannot be imported or takes no such argument.
    """
    problems = []
    for key, node in config.nodes().items():
        values = node.model_dump()
        target = values["_target_"]
        try:
            thing = pkgutil.resolve_name(target)
        except Exception as error:  # the import runs the user's code, which may raise anything
            problem = f"must name something that can be imported, but is {target!r} ({type(error).__name__}: {error})"
            problems.append(Problem(f"{key}._target_", problem))
            continue
        problems += _unknown_arguments(key, thing, [name for name in values if not name.startswith("_")])
    if problems:
        raise ConfigError(*problems)


def _unknown_arguments(key: str, thing: Any, names: Sequence[str]) -> Iterable[Problem]:
    try:
        parameters = inspect.signature(thing).parameters
    except (TypeError, ValueError):  # some builtins have none
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in names:
        if name not in parameters:
            yield Problem(
                f"{key}.{name}",
                f"{getattr(thing, '__name__', thing)} takes no such argument; {choices(name, parameters)}",
            )


def check_trainer(config: TrainerConfig, trainer: type) -> None:
    """Hold the trainer's arguments against the signature of Lightning's `Trainer`.

    Raises:
        ConfigError: for an argument that it does not have.
    """
    problems = list(_unknown_arguments("trainer", trainer, list(config.arguments())))
    if problems:
        raise ConfigError(*problems)


def build(node: BaseModel, **arguments: Any) -> Any:
    """What a node describes, `arguments` added to its own; errors of the target come through as they are."""
    if isinstance(node, Network):
        arguments["_recursive_"] = False  # a block can be built only once its input shape is known
    try:
        built = hydra.utils.instantiate(node.model_dump(), _convert_="all", **arguments)
    except InstantiationException as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None
    if isinstance(built, functools.partial):
        # Hydra's own kind of partial checks its target anew at each call: 2 ms a training step for an objective.
        return functools.partial(built.func, *built.args, **built.keywords)
    return built


# --- Identity ----------------------------------------------------------------------------------------------


def cell_name(encoder: str, decoder: str, overrides: Iterable[str]) -> str:
    """`<encoder>-<decoder>`, then `__<key>-<value>` for each further overridden key that can change a result.

    `overrides` are the words of the command line, `key=value` with Hydra's `+`, `++` or `~` in front.
    """
    given: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        first_part = key.partition(".")[0]
        if key not in ("encoder", "decoder", *NOT_IDENTIFYING) and first_part not in NOT_IDENTIFYING:
            given[key] = value
    base = f"{encoder}-{decoder}"
    suffix = "".join(f"__{key}-{value}" for key, value in sorted(given.items()))
    cell = re.sub(r"[^\w.+-]", "-", base + suffix)
    if len(cell) <= LONGEST_CELL:
        return cell
    return re.sub(r"[^\w.+-]", "-", base)[:80] + "__" + hashlib.sha256(suffix.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Run:
    """One cell at one seed: a valid configuration and where its files go."""

    config: Config
    encoder: str
    decoder: str
    cell: str
    overrides: tuple[str, ...]
    directory: Path

    @classmethod
    def of(cls, composed: DictConfig) -> Self:
        """The run that Hydra composed.

        Raises:
            ConfigError: if the configuration is not valid.
        """
        raw = {}
        problems = []
        for key in composed:
            if key == "hydra":
                continue
            try:
                value = composed[key]
                raw[str(key)] = (
                    OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
                    if OmegaConf.is_config(value)
                    else value
                )
            except OmegaConfBaseException as error:
                problems.append(Problem(error.full_key or str(key), str(error).splitlines()[0]))
        if problems:
            raise ConfigError(*problems)
        config = validate(raw)
        hydra_config = hydra_node(composed)
        chosen = hydra_config.runtime.choices
        overrides = words(hydra_config)
        encoder, decoder = str(chosen.encoder), str(chosen.decoder)
        return cls(
            config=config,
            encoder=encoder,
            decoder=decoder,
            cell=cell_name(encoder, decoder, overrides),
            overrides=overrides,
            directory=Path(run_folder(hydra_config)),
        )

    def __str__(self) -> str:
        return f"{self.cell}/seed-{self.config.seed}"


class Position(NamedTuple):
    """Which run of how many of a sweep this process is at."""

    number: int
    runs: int

    @classmethod
    def current(cls) -> Self | None:
        """From the sweep that started this process or holds it; None outside a sweep."""
        runs = os.environ.get(SWEEP_RUNS)
        if runs is None or not HydraConfig.initialized():
            return None
        return cls(int(HydraConfig.get().job.num) + 1, int(runs))


def run_folder(hydra_config: DictConfig) -> str:
    """The folder that Hydra gives to this run."""
    if hydra_config.mode == RunMode.MULTIRUN:
        return os.path.join(hydra_config.sweep.dir, hydra_config.sweep.subdir)
    return str(hydra_config.run.dir)


def words(hydra_config: DictConfig) -> tuple[str, ...]:
    """The overrides of a run as they were typed, interpolations left alone."""
    return tuple(cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False)))


def hydra_node(composed: DictConfig) -> DictConfig:
    """The `hydra` node that belongs to a configuration; a job gets its own without, and Hydra keeps it aside."""
    node = composed.get("hydra")
    return cast("DictConfig", HydraConfig.get()) if node is None else node


def _cell(*, _root_: DictConfig) -> str:
    node = hydra_node(_root_)
    return cell_name(node.runtime.choices.encoder, node.runtime.choices.decoder, words(node))


def _steps(*, _root_: DictConfig) -> int:
    numbers = (_root_.trainer.max_epochs, _root_.data.num_train, _root_.data.batch_size)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        return 1  # validation tells what is wrong with them
    epochs, images, batch = numbers
    return int(epochs) * math.ceil(images / batch)


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def register_resolvers() -> None:
    """Make `${vae_lab.…:}` known to OmegaConf: cores, steps, cell, run_folder and bundled."""
    resolvers: dict[str, Callable[..., Any]] = {
        "cores": cores,
        "steps": _steps,
        "cell": _cell,
        "run_folder": lambda *, _root_: run_folder(hydra_node(_root_)),
        "bundled": lambda folder: str(PACKAGE / "assets" / folder),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(f"vae_lab.{name}", resolver, replace=True)


# --- Hydra's own complaints --------------------------------------------------------------------------------


def is_complaint(error: Exception) -> bool:
    """Whether an error is about what the user wrote: Hydra, OmegaConf or the YAML reader raised it."""
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)  # Hydra also raises plain ValueErrors
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("hydra", "omegaconf", "yaml", "antlr4")


def explain(error: Exception) -> ConfigError:
    """What Hydra, OmegaConf or the YAML reader found, in the form of our own errors."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return ConfigError(Problem(group, f"there is no choice {choice!r}; {choices(choice, error.options)}"))
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}"
        return ConfigError(Problem(place, f"this is not YAML: {error.problem}"))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            Problem(
                "command line",
                f"{error.override!r} is not of the form key=value ({error.message.splitlines()[0]})",
            )
        )
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and OmegaConf.is_dict(cause.parent_node):
        word = str(cause.key)
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        asked = re.search(r"use \+(\S+)", str(error))
        value = f" ({asked[1]})" if asked else ""
        return ConfigError(Problem(cause.full_key or word, f"no such key{value}; {choices(word, known)}"))
    lines = [line for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        lines += str(cause).splitlines()[:1]
    return ConfigError(Problem(getattr(cause, "full_key", None) or "command line", " ".join(lines)))
