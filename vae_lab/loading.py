"""A run folder to the model that it holds. The folder may be a stranger's: none of its code is run."""

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vae_lab import config, vae
from vae_lab.blocks import FitError
from vae_lab.config import Config, ConfigError
from vae_lab.results import CONFIG, RESULT, WEIGHTS, Result
from vae_lab.results.directions import better
from vae_lab.trust import Allowed, Trust

LARGEST = {CONFIG: 2**20, RESULT: 2**24, WEIGHTS: 2**24}
"""Bytes beyond which a file is none of ours, and not read; of the weights this is about their header."""
DEEPEST = 100
"""Lists and groups in one another; at some ten thousand PyYAML's reader in C crashes the process."""
MOST_LETTERS = 500
"""Of an error, which may quote a file."""
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

FLOATING = ("F64", "F32", "F16", "BF16")
WHOLE = ("BOOL", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64")


class LoadError(ValueError):
    """A folder of which no model can be made, or none that may be."""

    def __init__(self, text: str) -> None:
        words = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
        super().__init__(words if len(words) <= MOST_LETTERS else f"{words[:MOST_LETTERS]} …")


def load(
    run: str | os.PathLike[str],
    allow: Allowed | Iterable[Allowed] = (),
    device: str | torch.device = "cpu",
    best: str | None = None,
) -> vae.VAE:
    """The model of a finished run, in evaluation mode, in 32-bit floats.

    The folder may come from somebody else. Weights are read from `model.safetensors`, which cannot hold code. Of
    `config.yaml` only encoder, latent and decoder are built, of `torch.nn.Module` classes of this package, of
    `torch.nn` and of `allow`; nothing else that it names is imported.

    Args:
        run: a run's folder, `outputs/<name>/<cell>/seed-<n>`; with `best` a sweep's or a cell's.
        allow: what else the model may be made of: classes of yours, or names of packages, modules or classes, which are
            then imported from Python's path.
        device: where the model goes.
        best: a dotted figure of `result.json` such as `val.total`: of the finished runs the one where it is best.

    Raises:
        LoadError: saying what is wrong: no such folder, no finished run, files that are missing, damaged or do not fit
            each other, a class that is not allowed.
    """
    try:
        trust = Trust(allow)
        place = _device(device)
    except ValueError as error:
        raise LoadError(str(error)) from error
    folder, result = _chosen(Path(run), best)
    _check_sum(folder, result)
    settings = _settings(folder)
    try:
        classes = trust.classes_of(settings)
        model = _built(settings, classes, folder / WEIGHTS)
    except (FitError, ConfigError) as error:
        raise LoadError(f"{folder / CONFIG}: {_first(error)}") from error
    try:
        return model.to(memory_format=torch.channels_last).to(place).eval()
    except (RuntimeError, AssertionError) as error:  # torch says so where it was built without CUDA
        raise LoadError(f"the model cannot go to device {str(device)!r}: {error}") from error


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"there is no device {device!r}; take 'cpu', 'cuda' or 'mps'") from error


def _first(error: ValueError) -> str:
    problems = str(error).splitlines() or [type(error).__name__]
    more = len(error.problems) - 1 if isinstance(error, ConfigError) else 0
    return problems[0] + (f" (and {more} more)" if more else "")


# --- The folder --------------------------------------------------------------------------------------------


def _chosen(folder: Path, best: str | None) -> tuple[Path, Result]:
    """The run's folder and its result."""
    if not os.path.isdir(folder):
        raise LoadError(f"{folder} is not a folder" if os.path.exists(folder) else f"there is no folder {folder}")
    if os.path.lexists(folder / RESULT) or os.path.lexists(folder / CONFIG):
        if best is not None:
            raise LoadError(f"{folder} is the folder of one run: leave out best={best!r}, or name the sweep's folder")
        return folder, _result(folder)
    runs = _runs(folder)
    if not runs:
        raise LoadError(f"{folder} has no finished run: a run's folder is outputs/<name>/<cell>/seed-<n>")
    if best is None:
        raise LoadError(
            f"{folder} is the folder of {len(runs)} run{'s' if len(runs) > 1 else ''}: name one of them, such as "
            f"{runs[0].relative_to(folder)}, or give best='val.total'"
        )
    return _best(folder, runs, best)


def _runs(folder: Path) -> list[Path]:
    """The run folders of a sweep or a cell."""

    def order(run: Path) -> tuple[str, int, str]:
        return str(run.parent), len(run.name), run.name

    found = (run for pattern in ("seed-*", "*/seed-*") for run in folder.glob(pattern))
    return sorted((run for run in found if re.fullmatch(r"seed-\d+", run.name) and run.is_dir()), key=order)


def _best(folder: Path, runs: Iterable[Path], metric: str) -> tuple[Path, Result]:
    finished = []
    for run in runs:
        try:
            finished.append((run, _result(run)))
        except LoadError:  # a hole in the sweep
            continue
    if not finished:
        raise LoadError(f"{folder} has no finished run")
    figures = [(_figures(result), run, result) for run, result in finished]
    known = list(dict.fromkeys(name for own, _, _ in figures for name in own if better(name)))
    direction = better(metric)
    if direction is None and any(metric in own for own, _, _ in figures):
        raise LoadError(f"best: neither less nor more of {metric} is better; {config.choices(metric, known)}")
    candidates = [(own[metric], run, result) for own, run, result in figures if metric in own]
    if direction is None or not candidates:
        raise LoadError(f"best: no finished run in {folder} has {metric!r}; {config.choices(metric, known)}")
    _, run, result = (min if direction == "lower" else max)(candidates, key=lambda one: one[0])
    return run, result


def _figures(result: Result) -> dict[str, float]:
    families = ("train", "val", "test", "timing", "model", "memory")
    flat = config.flatten({family: getattr(result, family).model_dump() for family in families})
    return {key: one for key, one in flat.items() if type(one) in (int, float) and math.isfinite(one)}


def _result(folder: Path) -> Result:
    """The result of a finished run."""
    path = folder / RESULT
    if not os.path.lexists(path):
        raise LoadError(f"{folder} has no {RESULT}: the run did not end, or it is not the folder of a run")
    try:
        result = Result.model_validate_json(_read(path))
    except ValidationError as error:
        raise LoadError(f"{path} is damaged ({error.errors()[0]['msg']})") from error
    if not result.finished:
        raise LoadError(f"the run in {folder} failed ({result.error}); there is no model of it")
    return result


def _read(path: Path) -> bytes:
    """The content of a small file; a pipe or a device is not waited for."""
    try:
        _check_is_file(path)
        with open(path, "rb") as file:
            content = file.read(LARGEST[path.name] + 1)
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > LARGEST[path.name]:
        raise LoadError(f"{path} is larger than any {path.name} that vae_lab writes")
    return content


def _check_is_file(path: Path) -> None:
    if not os.path.exists(path):
        raise LoadError(f"{path} is missing")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise LoadError(f"{path} is not a file")


# --- The configuration -------------------------------------------------------------------------------------


def _settings(folder: Path) -> Config:
    path = folder / CONFIG
    content = _read(path)
    try:
        _check_is_plain(content)
        loaded = yaml.load(content, YAML_LOADER)
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error
    except Exception as error:  # PyYAML also raises what int() and others raise
        raise LoadError(f"{path} is not a configuration that can be read ({_yaml_reason(error)})") from error
    if not isinstance(loaded, dict):
        raise LoadError(f"{path} is not a configuration: it holds a {type(loaded).__name__}")
    # What a later version has beside the model does not concern it.
    known = {key: value for key, value in loaded.items() if key in Config.model_fields}
    try:
        return config.validate(known)
    except ConfigError as error:
        raise LoadError(f"{path}: {_first(error)}") from error


def _check_is_plain(content: bytes) -> None:
    """That a few bytes do not stand for a tree of any size or depth."""
    depth = 0
    for event in yaml.parse(content, YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise LoadError(f"line {line} refers to another place, by *{event.anchor}; write out what stands there")
        if depth > DEEPEST:
            raise LoadError(f"line {line} is nested more than {DEEPEST} deep")


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# --- The weights -------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A tensor as the header of the weights tells it."""

    shape: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"


def _check_sum(folder: Path, result: Result) -> None:
    """Hold the weights against the checksum that the run left of them, if it left one."""
    path = folder / WEIGHTS
    _check_is_file(path)
    sums = getattr(result, "files", None)
    wanted = sums.get(WEIGHTS) if isinstance(sums, Mapping) else None
    if wanted is None:
        return
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror})") from error
    if found != wanted:
        raise LoadError(f"{path} is not the file that the run wrote: its SHA-256 is not the one in {RESULT}")


def _built(settings: Config, classes: Mapping[str, type[nn.Module]], path: Path) -> vae.VAE:
    """The model with its weights; memory is taken only once they are known to fit."""
    stored = _header(path)
    with config.found_by(classes.__getitem__), torch.random.fork_rng(devices=[]), torch.no_grad():
        with torch.device("meta"):
            sketch = vae.build(settings)
            if not all(isinstance(half, config.Network) for half in (settings.encoder, settings.decoder)):
                vae.check_shapes(sketch, settings.data.image_shape)  # lists of blocks have planned theirs
            _check_weights(sketch, stored, path)
        with torch.device("cpu"):
            model = vae.build(settings).float()
        try:
            model.load_state_dict(load_file(path), strict=False)
        except Exception as error:  # safetensors and torch raise many kinds over an altered file
            raise LoadError(f"{path} cannot be read ({_first_line(error)})") from error
    for name, parameter in model.named_parameters():
        if parameter.numel() and not all(one.isfinite() for one in parameter.aminmax()):
            raise LoadError(f"{path} is damaged: {name} has values that are not finite")
    return model


def _header(path: Path) -> dict[str, Stored]:
    """Name → shape and type of every tensor, without reading them."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LARGEST[WEIGHTS]:
            raise LoadError(f"{path} is damaged: its header would be {length:,} bytes long")
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: Stored(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except LoadError:
        raise
    except Exception as error:  # safetensors raises errors of its own
        raise LoadError(f"{path} is damaged: it cannot be read as safetensors ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_weights(model: nn.Module, stored: Mapping[str, Stored], path: Path) -> None:
    wanted: dict[str, Tensor] = model.state_dict(keep_vars=True)
    written = {id(tensor) for name, tensor in wanted.items() if name in stored}
    for name, tensor in wanted.items():
        shape = tuple(tensor.shape)
        if name in stored:
            kinds = FLOATING if tensor.is_floating_point() else WHOLE
            if stored[name].shape != shape or stored[name].kind not in kinds:
                raise _misfit(path, f"{name} is {stored[name]} in the weights, but {kinds[1]} {shape} in the model")
        elif id(tensor) not in written:  # of tensors that are shared one is stored
            raise _misfit(path, f"{name} is missing in the weights, but {shape} in the model")
    left = next((name for name in stored if name not in wanted), None)
    if left is not None:
        raise _misfit(path, f"{left} is {stored[left]} in the weights, and is not in the model")


def _misfit(path: Path, text: str) -> LoadError:
    return LoadError(f"{path} does not fit {CONFIG} beside it: {text}")
