"""A run: one cell at one seed, its name and its folder."""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc

from vae_lab.config import keys
from vae_lab.config.complaints import explain, is_complaint
from vae_lab.config.errors import ConfigError, Problem
from vae_lab.config.identity import BESIDE_TRAINING, cell_name, identifying
from vae_lab.config.names import PACKAGE
from vae_lab.config.schema import Config, flatten
from vae_lab.config.validation import validate


@dataclass(frozen=True)
class Run:
    """One cell at one seed: a valid configuration and the folder of its files."""

    config: Config
    encoder: str
    decoder: str
    cell: str
    overrides: tuple[str, ...]
    directory: Path
    given: Mapping[str, str] = field(default_factory=dict)
    """The overridden keys that can change a result, except encoder and decoder."""
    lengths: tuple[str, ...] = ()
    """The scheduler's arguments that are the number of optimiser steps: `${vae_lab.steps:}` in the file."""

    @classmethod
    def of(cls, composed: DictConfig) -> Self:
        """The run of a configuration that Hydra composed.

        Raises:
            ConfigError: if the configuration is not valid.
        """
        raw, unresolved = _resolved(composed)
        hydra_config = hydra_node(composed)
        problems = [*unresolved]
        try:
            references = _references(raw, hydra_config) if not unresolved else {}
        except ConfigError as error:
            references, problems = {}, [*error.problems]
        try:
            config = validate(raw | references)
        except ConfigError as error:
            known = [problem.key for problem in unresolved]
            problems += [one for one in error.problems if not _lies_in(one.key, known)]
        if problems:
            raise ConfigError(*_at_their_source(problems, unresolved, composed))
        lengths = _lengths(composed)
        if lengths and (limits := [*_time_limits(config)]):
            raise ConfigError(*limits)
        chosen = hydra_config.runtime.choices
        overrides = (*experiment_words(hydra_config), *words(hydra_config))
        encoder, decoder = str(chosen.encoder), str(chosen.decoder)
        given = identifying(overrides, raw)
        overwritten = [*_overwritten(config, words(hydra_config))]
        if overwritten:
            raise ConfigError(*overwritten)
        if config.published is not None:
            networks = {"encoder": encoder, "decoder": decoder}
            further = _beside_the_published(hydra_config, networks, raw)
            config = config.model_copy(update={"published": config.published.about(networks, further)})
        run = cls(
            config=config,
            encoder=encoder,
            decoder=decoder,
            cell=cell_name(encoder, decoder, given),
            overrides=overrides,
            directory=Path(run_folder(hydra_config)),
            given=given,
            lengths=lengths,
        )
        # A run takes the files in its folder for those of an earlier attempt, and removes them.
        if run.directory.parts[-3:] != (config.name, run.cell, f"seed-{config.seed}"):
            key = "hydra.sweep.dir" if hydra_config.mode == RunMode.MULTIRUN else "hydra.run.dir"
            problem = f"must make a folder that ends in <name>/<cell>/seed-<n>, but makes {run.directory}"
            raise ConfigError(Problem(key, problem))
        return run

    def __str__(self) -> str:
        return f"{self.cell}/seed-{self.config.seed}"


def _resolved(composed: DictConfig) -> tuple[dict[str, Any], list[Problem]]:
    """A composed configuration as plain containers, and a problem for each value that cannot be resolved."""
    raw: dict[str, Any] = {}
    problems: list[Problem] = []

    def one_by_one(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: one_by_one(f"{key}.{name}", one) for name, one in value.items()}
        if isinstance(value, list):
            return [one_by_one(f"{key}[{index}]", one) for index, one in enumerate(value)]
        if not isinstance(value, str) or ("${" not in value and value != "???"):
            return value
        try:
            return _plain(OmegaConf.select(composed, key, throw_on_missing=True), resolve=True)
        except MissingMandatoryValue:
            problems.append(Problem(key, f"is missing; give it: {key}=…"))
        except OmegaConfBaseException as error:
            problems.append(Problem(key, str(error).splitlines()[0]))
        return None

    for key in composed:
        if key == "hydra":
            continue
        try:
            value = composed[key]
            raw[str(key)] = _plain(value, resolve=True)
        except OmegaConfBaseException:  # find the values at fault
            unresolved = OmegaConf.to_container(composed, resolve=False)
            assert isinstance(unresolved, dict)
            raw[str(key)] = one_by_one(str(key), unresolved[key])
    return raw, problems


def _lies_in(key: str, sections: Iterable[str]) -> bool:
    """Whether a key is one of these or within one of them."""
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _at_their_source(problems: Sequence[Problem], unresolved: Sequence[Problem], composed: DictConfig) -> list[Problem]:
    """The problems, with those of a computed value under the key that it is computed from.

    A computed value is not reported if a key that it is computed from is.
    """
    leaves = flatten(OmegaConf.to_container(composed, resolve=False))
    computed = {key: text for key, text in leaves.items() if isinstance(text, str) and "${" in text}
    at_fault = [problem.key for problem in problems if problem.key not in computed]
    typed = [word.lstrip("+~").partition("=")[0] for word in words(hydra_node(composed))]
    found = []
    for problem in problems:
        text = computed.get(problem.key)
        sources = re.findall(r"\$\{([A-Za-z_][\w.]*)\}", text or "")
        if text is None:
            found.append(problem)
        elif any(_lies_in(key, sources) or not sources for key in at_fault):
            continue
        elif sources and problem not in unresolved and not _lies_in(problem.key, typed):
            found.append(Problem(sources[0], f"{problem.text}; {problem.key} is computed from it"))
        else:
            found.append(problem)
    return [*dict.fromkeys(found)]


def _lengths(composed: DictConfig) -> tuple[str, ...]:
    """The scheduler's arguments that are the number of optimiser steps."""
    scheduler = composed.get("scheduler")
    arguments = OmegaConf.to_container(scheduler, resolve=False) if OmegaConf.is_dict(scheduler) else {}
    assert isinstance(arguments, dict)
    return tuple(str(key) for key, value in arguments.items() if str(value).startswith("${vae_lab.steps:"))


def _time_limits(config: Config) -> Iterator[Problem]:
    """What ends a training at a time that depends on the machine, so that its number of steps is not known."""
    callbacks = {f"callbacks.{key}": node.target for key, node in (config.callbacks or {}).items()}
    limits = [key for key, target in callbacks.items() if target.endswith("callbacks.Timer")]
    if (config.trainer.model_extra or {}).get("max_time") is not None:
        limits.append("trainer.max_time")
    for key in limits:
        problem = "ends a training after a time, but the scheduler needs to know the number of steps"
        yield Problem(key, f"{problem}; take scheduler=constant, or +trainer.max_steps in place of the time")


class Position(NamedTuple):
    """The number of this process's run in its sweep, and the number of runs."""

    number: int
    runs: int

    @classmethod
    def current(cls) -> Self | None:
        """The position in the sweep that this process belongs to; None outside a sweep."""
        known = Inherited.here
        if known.number is not None:
            return cls(known.number, known.runs or 1)
        # Hydra gives a job its number, but not the number of jobs.
        if known.runs is None or not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().job, "num"):
            return None
        return cls(int(HydraConfig.get().job.num) + 1, known.runs)


@dataclass(frozen=True)
class Inherited:
    """What a run's process gets from the command: values that a configuration takes from the command's machine.

    It is sent with the run, not by environment variables, which a process can also have from elsewhere.
    """

    here: ClassVar["Inherited"]
    """That of this process; in a command all values are unset but those of its sweep."""

    cores: int | None = None
    precision: str | None = None
    runs: int | None = None
    """The number of runs of the sweep."""
    number: int | None = None
    """The number of this process's run, if Hydra does not know it: in the processes that train a run together."""
    cores_of_a_run: int | None = None
    gpus_of_a_run: int | None = None
    is_worker: bool = False
    """Whether a launcher or another process started this process."""

    @classmethod
    def update(cls, **values: Any) -> None:
        """Set values for this process, and for those that it starts."""
        cls.here = replace(cls.here, **values)


Inherited.here = Inherited()


def run_folder(hydra_config: DictConfig) -> str:
    """The folder that Hydra gives to this run, absolute."""
    start = hydra_config.runtime.cwd  # a job may run elsewhere: hydra.job.chdir
    if hydra_config.mode == RunMode.MULTIRUN:
        return os.path.join(start, hydra_config.sweep.dir, hydra_config.sweep.subdir)
    return os.path.join(start, hydra_config.run.dir)


def words(hydra_config: DictConfig) -> tuple[str, ...]:
    """The overrides of a run as typed, with interpolations unresolved."""
    return tuple(cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False)))


def _overwritten(config: Config, typed: Iterable[str]) -> Iterator[Problem]:
    """Keys that were typed although another typed key decides their value."""
    keys = {word.lstrip("+").partition("=")[0] for word in typed}
    if config.asked_sigma is not None and "objective.beta" in keys:
        yield Problem("objective.beta", "follows from objective.sigma, which is given too; leave one of them out")
    if "subset" in config.vary and "data.subset_seed" in keys:
        yield Problem("data.subset_seed", "is the seed of the run, as vary has subset; leave it out")


def experiment_words(hydra_config: DictConfig) -> tuple[str, ...]:
    """The settings of the chosen experiment file as overrides: they name a cell as typed overrides do.

    The keys that the file sweeps are left out: Hydra passes them to each run as overrides.
    """
    name = hydra_config.runtime.choices.get("experiment")
    return tuple(f"{key}={value}" for key, value in _settings(hydra_config, name).items())


def _settings(hydra_config: DictConfig, name: str | None) -> dict[str, Any]:
    """What an experiment file chooses and sets, after what the files that it is based on do."""
    content = _experiment(hydra_config, name)
    defaults = content.get("defaults", [])
    based_on = [_settings(hydra_config, one) for one in defaults if isinstance(one, str) and one != "_self_"]
    chosen = {
        key.removeprefix("override ").lstrip("/"): choice
        for default in defaults
        if isinstance(default, dict)
        for key, choice in default.items()
    }
    values = {key: value for key, value in content.items() if key not in ("defaults", "hydra", "published")}
    found: dict[str, Any] = {}
    for own in (*based_on, chosen, flatten(values) if values else {}):
        found |= own
    return found


def _beside_the_published(
    hydra_config: DictConfig, networks: Mapping[str, str], raw: Mapping[str, Any]
) -> dict[str, str]:
    """What a run has beside what its published figures are about: all overrides of the default job or an experiment.

    An experiment's own settings count for figures that are not its own.
    """
    typed, own = words(hydra_config), experiment_words(hydra_config)
    if "published" not in _experiment(hydra_config, hydra_config.runtime.choices.get("experiment")):
        typed, own = (*own, *typed), ()
    removed = {word.lstrip("~").partition("=")[0]: "" for word in typed if word.startswith("~")}
    other = {side: choice for side, choice in networks.items() if f"{side}={choice}" not in own}
    return identifying(typed, raw) | removed | other


def _experiment(hydra_config: DictConfig, name: str | None) -> Mapping[str, Any]:
    """The content of an experiment file; empty without one."""
    folders = [source.path for source in hydra_config.runtime.config_sources if source.schema == "file"]
    files = (Path(folder, "experiment", f"{name}.yaml") for folder in folders)  # as Hydra does: the first one counts
    file = next((file for file in files if file.is_file()), None)
    return {} if name is None or file is None else _content(str(file), file.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _content(file: str, changed: int) -> Mapping[str, Any]:
    return yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}


def hydra_node(composed: DictConfig) -> DictConfig:
    """The `hydra` node of a configuration. A job's configuration has none; Hydra keeps it separately."""
    node = composed.get("hydra")
    return cast("DictConfig", HydraConfig.get()) if node is None else node


def _references(raw: dict[str, Any], hydra_config: DictConfig) -> dict[str, Any]:
    """`match` with the networks that it names; empty if no cost is to be matched."""
    match = raw.get("match")
    if not isinstance(match, dict) or match.get("cost", "none") == "none":
        return {}
    problems, found = [], {}
    paths = tuple(word for word in hydra_config.overrides.hydra if word.lstrip("+").startswith("hydra.searchpath"))
    overrides = (*words(hydra_config), *paths)
    for side in ("encoder", "decoder"):
        choice = match.get(side, "vanilla")
        try:
            found[side] = _group_choice(GlobalHydra.instance().config_loader(), side, str(choice), overrides)
        except Exception as error:
            if not is_complaint(error):
                raise
            problems += [Problem(f"match.{side}", text) for _, text in explain(error).problems]
    if problems:
        raise ConfigError(*problems)
    return {"match": match | {"references": found}}


@lru_cache(maxsize=256)
def _group_choice(loader: ConfigLoader, side: str, choice: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The section that `side=choice` selects with these overrides, except those of the networks themselves."""
    left_out = ("encoder", "decoder", "match", "experiment")
    kept = [word for word in overrides if re.split(r"[.=]", word.lstrip("+~"))[0] not in left_out]
    composed = loader.load_configuration("train", [*kept, f"{side}={choice}"], RunMode.RUN)
    return cast(dict[str, Any], OmegaConf.to_container(composed[side], resolve=True, throw_on_missing=True))


def _cell(*, _root_: DictConfig) -> str:
    node = hydra_node(_root_)
    encoder, decoder = (str(node.runtime.choices.get(side)) for side in ("encoder", "decoder"))
    given = (*experiment_words(node), *words(node))
    return cell_name(
        encoder, decoder, identifying(given, {key: _plain(_root_.get(key)) for key in (*BESIDE_TRAINING, "trainer")})
    )


def _plain(nodes: Any, *, resolve: bool = False) -> Any:
    """A section as plain containers; by default unresolved, since validation reports its errors."""
    if not OmegaConf.is_config(nodes):
        return nodes
    return OmegaConf.to_container(nodes, resolve=resolve, throw_on_missing=resolve)


def _steps(*, _root_: DictConfig) -> int:
    """The optimiser steps of a whole training, as far as the configuration says; 1 if it is not valid."""
    trainer = _root_.trainer
    try:
        batches = math.ceil(_root_.data.num_train / _root_.data.batch_size)
        limit = trainer.get("overfit_batches") or trainer.get("limit_train_batches") or 1.0
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        factors = {0: trainer.get("accumulate_grad_batches", 1)}
        for node in (_root_.get("callbacks") or {}).values():
            if str(node.get("_target_")).endswith(".GradientAccumulationScheduler"):
                factors |= dict(node.scheduling)
        return optimizer_steps(batches, trainer.max_epochs, factors, trainer.get("max_steps", -1))
    except (TypeError, ValueError, AttributeError, ArithmeticError, OmegaConfBaseException):
        return 1  # validation reports the error


def optimizer_steps(batches: int, epochs: int, factors: Mapping[int, int], most: int = -1) -> int:
    """The number of optimiser steps of a training.

    Args:
        batches: the batches of an epoch.
        epochs: the number of epochs.
        factors: epoch (from 0) → the number of batches whose gradients are added up for a step, from then on.
        most: Lightning's `max_steps`; -1 for no limit.
    """
    starts = sorted(epoch for epoch in {0: 1} | dict(factors) if epoch < epochs)
    steps = sum(
        (end - start) * math.ceil(batches / factors.get(start, 1)) for start, end in pairwise([*starts, epochs])
    )
    return max(1, min(steps, most) if most >= 0 else steps)


def cores() -> int:
    """The CPU cores that this process may use; in a launcher's job, those of the command."""
    if Inherited.here.cores is not None:
        return Inherited.here.cores
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores_each(*, _root_: DictConfig) -> int:
    """The cores per process of a run that several processes train."""
    devices = _root_.trainer.get("devices")
    count = len(devices) if OmegaConf.is_list(devices) else devices
    return max(1, cores() // count) if isinstance(count, int) and count > 0 else 1  # validation reports the error


def _cores_of_a_run() -> int:
    """The cores that each run of the sweep uses: the threads of all its processes."""
    return Inherited.here.cores_of_a_run or cores()


def _at_once() -> int:
    """The number of runs that fit on this machine at once."""
    return max(1, cores() // _cores_of_a_run())


def precision() -> str:
    """`bf16-mixed` where the processor multiplies 16-bit floats natively, else `32-true`.

    In a launcher's job it is the precision of the command's machine.
    """
    return Inherited.here.precision or _native_precision()


@lru_cache
def _native_precision() -> str:
    """The faster precision on this processor.

    It is `bf16-mixed` on x86 processors under Linux with `avx512_bf16` or `amx_bf16`; for others no gain is known.
    """
    try:
        found = re.search(r"^flags\s*:.*\b(avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return "32-true"
    return "bf16-mixed" if found else "32-true"


def _environment(name: str, *default: str | None) -> Any:
    """A variable of the environment, as OmegaConf gives it, but with numbers and truth values of their type."""
    text = oc.env(name, *default)
    if text is None or not (keys.NUMBER.fullmatch(text) or text.lower() in ("true", "false")):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.lstrip("+-").isdecimal() else float(text)


def register_resolvers() -> None:
    """Register `${vae_lab.…:}` with OmegaConf: cores, precision, steps, cell, folders and launcher resources."""
    resolvers: dict[str, Callable[..., Any]] = {
        "cores": cores,
        "cores_each": _cores_each,
        "cores_of_a_run": _cores_of_a_run,
        "gpus_of_a_run": lambda: Inherited.here.gpus_of_a_run or None,
        "at_once": _at_once,
        "precision": precision,
        "steps": _steps,
        "cell": _cell,
        "run_folder": lambda *, _root_: run_folder(hydra_node(_root_)),
        "last_part": lambda path: Path(str(path)).expanduser().absolute().name,
        "bundled": lambda folder: str(PACKAGE / "assets" / folder),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(f"vae_lab.{name}", resolver, replace=True)
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
