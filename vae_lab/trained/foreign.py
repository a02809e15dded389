"""Read the files of an untrusted run safely. Imports no torch."""

import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vae_lab import config
from vae_lab.config import signatures
from vae_lab.config.text import visible
from vae_lab.config.versions import upgraded
from vae_lab.results import figures
from vae_lab.results.files import CONFIG, RESULT, WEIGHTS, Result, check_result
from vae_lab.results.integrity import sha256
from vae_lab.results.plain import PlainError, load_plain
from vae_lab.results.reading import UnreadableError, check_file, read_bytes, read_json

MOST_LETTERS = 500
"""Length limit of an error message, which may quote a file."""

SPLITS = ("train", "val", "test")
OF_IMAGES = (
    "data._target_",
    "data.dataset",
    "data.image_shape",
    "data.binarize",
    "data.binarize_seed",
    "data.background",
)


class LoadError(ValueError):
    """A run folder from which a model cannot be loaded, or must not be."""

    def __init__(self, text: str) -> None:
        words = visible(" ".join(text.split()))
        super().__init__(words if len(words) <= MOST_LETTERS else f"{words[:MOST_LETTERS]} …")


# --- Which run ---------------------------------------------------------------------------------------------


def choose(folder: Path, best: str | None = None) -> tuple[Path, Result]:
    """The folder of a finished run, and its result: `folder` itself or, with `best`, the best run in it.

    Args:
        folder: a run's folder; with `best`, that of a sweep or a cell.
        best: a dotted figure of `result.json`.

    Raises:
        LoadError: if there is no such folder, run or figure, or the figure cannot be compared between the runs.
    """
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
        except LoadError:  # an unfinished run
            continue
    if not finished:
        raise LoadError(f"{folder} has no finished run")
    found = [(_figures(result), run, result) for run, result in finished]
    known = list(dict.fromkeys(name for own, _, result in found for name in own if _row(name, result).better))
    candidates = [(own[metric], run, result) for own, run, result in found if metric in own]
    direction = _row(metric, candidates[0][2]).better if candidates else None
    if direction is None and candidates:
        raise LoadError(f"best: neither less nor more of {metric} is better; {config.choices(metric, known)}")
    if direction is None or not candidates:
        raise LoadError(f"best: no finished run in {folder} has {metric!r}; {config.choices(metric, known)}")
    _check_comparable([(run, result) for _, run, result in candidates], metric)
    _, run, result = (min if direction == "lower" else max)(candidates, key=lambda one: one[0])
    return run, result


def _row(name: str, result: Result) -> figures.Figure:
    known = result.measured()
    further = {key: node.model_dump() for key, node in known.further.items()} if known else {}
    return figures.find(name, further, result.terms)


def _check_comparable(runs: Iterable[tuple[Path, Result]], metric: str) -> None:
    """Check that a figure means the same in all runs: the same images and, if it depends on it, the same objective."""
    family, _, name = metric.partition(".")
    seen: dict[str, Any] = {}
    for run, result in runs:
        try:
            settings = config.flatten(upgraded(read_plain_config(run)))
        except LoadError:  # raised later if this run is the best
            continue
        hangs_on = _row(metric, result).hangs_on
        sections = [*(OF_IMAGES if family in SPLITS else ())]
        if hangs_on == "objective":
            sections.append("objective")
            if not signatures.beta_sets_sigma(settings.get("objective._target_")):
                sections.append("likelihood")
            elif settings.get("objective.sigma") is not None:
                sections.append("likelihood._target_")
                settings.pop("objective.beta", None)
            else:
                sections.append("likelihood._target_")
                if settings.get("objective.beta"):  # β is another σ with another number of dimensions
                    sections += ["latent.dim", "latent.shape"]
        conditions = {
            key: value
            for key, value in settings.items()
            if {key, key.partition("[")[0], re.split(r"[.\[]", key)[0]} & {*sections}
        }
        if hangs_on == "units":
            conditions["its unit"] = result.terms.get(name)
        if hangs_on:
            conditions["the data of the likelihood"] = result.nats
        for key, value in conditions.items():
            other = seen.setdefault(key, value)
            if other != value:
                raise LoadError(
                    f"best: {metric} does not mean the same in all runs: {key} is {other!r} in one, {value!r} in "
                    "another; name one run's folder"
                )


def _figures(result: Result) -> dict[str, float]:
    families = (*SPLITS, "timing", "model", "memory")
    flat = config.flatten({family: getattr(result, family).model_dump() for family in families})
    return {key: one for key, one in flat.items() if type(one) in (int, float) and math.isfinite(one)}


def _result(folder: Path) -> Result:
    """The result of a finished run."""
    path = folder / RESULT
    if not os.path.lexists(path):
        raise LoadError(f"{folder} has no {RESULT}: the run did not end, or it is not the folder of a run")
    try:
        result = check_result(read_json(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise LoadError(f"{path} is damaged ({reason})") from error
    if not result.finished:
        raise LoadError(f"the run in {folder} failed ({result.error}); there is no model of it")
    return result


def unreadable(path: Path, error: OSError) -> LoadError:
    """The error for a file that cannot be read."""
    if isinstance(error, UnreadableError):
        return LoadError(f"{path} {error.strerror}")
    if isinstance(error, FileNotFoundError):
        return LoadError(f"{path} is missing")
    return LoadError(f"{path} cannot be read ({error.strerror})")


def read_plain_config(folder: Path) -> dict[Any, Any]:
    """The content of `config.yaml`: plain containers of limited depth, each in one place.

    Raises:
        LoadError: if it is missing, or not such a configuration.
    """
    path = folder / CONFIG
    try:
        loaded = load_plain(read_bytes(path))
    except OSError as error:
        raise unreadable(path, error) from error
    except PlainError as error:
        raise LoadError(f"{path}: {error}") from error
    except Exception as error:  # PyYAML also raises what int() and others raise
        raise LoadError(f"{path} is not a configuration that can be read ({_yaml_reason(error)})") from error
    if not isinstance(loaded, dict):
        raise LoadError(f"{path} is not a configuration: it holds a {type(loaded).__name__}")
    return loaded


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def check_weights(folder: Path, result: Result) -> Path:
    """The path of the weights, after their checksum is compared with the one that the run recorded, if any.

    Raises:
        LoadError: if they are missing or differ.
    """
    path = folder / WEIGHTS
    wanted = result.files.get(WEIGHTS)
    try:
        check_file(path)
        found = wanted and sha256(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if found != wanted:
        raise LoadError(f"{path} is not the file that the run wrote: its SHA-256 is not the one in {RESULT}")
    return path
