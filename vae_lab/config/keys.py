"""Every group, choice and key that the files of conf/ and the schemas know, to suggest what a user meant.

It is read only after a mistake.
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vae_lab.config.names import config_folder
from vae_lab.config.schema import SECTIONS, TrainerConfig, flatten

MOST = 3
"""The most suggestions for one word."""

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

ALSO_CALLED = {
    "learning_rate": "lr", "bs": "batch_size", "kl": "beta", "kl_weight": "beta", "z": "dim", "zdim": "dim",
    "latents": "dim", "latent_size": "dim", "cpus": "threads", "cores": "threads", "wd": "weight_decay",
    "clip": "gradient_clip_val", "images": "num_train", "fp16": "precision",
}  # fmt: skip
"""Usual names of other programs → the last part of ours."""

ON_A_GPU = ("gpu", "gpus", "cuda", "device")
"""Usual names for what `trainer=gpu` says."""


@cache
def groups() -> dict[str, list[str]]:
    """Group → its choices, those of Hydra left out."""
    found: dict[str, list[str]] = {}
    for path in sorted(config_folder().glob("*/*.yaml")):
        if path.parent.name != "hydra":
            found.setdefault(path.parent.name, []).append(path.stem)
    return found


@cache
def by_choice() -> dict[tuple[str, str], dict[str, Any]]:
    """Group and choice → the dotted keys of its file, and their values."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for group, choices in groups().items():
        for choice in choices if group != "experiment" else ():
            text = (config_folder() / group / f"{choice}.yaml").read_text(encoding="utf-8")
            node = yaml.safe_load(text)
            is_global = text.startswith("# @package _global_")
            found[group, choice] = flatten(node if is_global else {group: node}) if isinstance(node, dict) else {}
    return found


@cache
def in_files() -> dict[str, Any]:
    """Dotted key → a value, of all files of all groups."""
    found: dict[str, Any] = {"name": "", "seed": 0, "plan": False}
    for keys in by_choice().values():
        found |= {key: value for key, value in keys.items() if not re.search(r"\[|\._|\bdefaults", key)}
    return found


@cache
def to_add() -> set[str]:
    """Keys that no file has to have: on the command line they take a plus."""
    found = {
        f"{'data' if section == 'folder' else section}.{name}"
        for section, schema in SECTIONS.items()
        for name in schema.model_fields
        if name not in ("target", "references")
    }
    found |= {f"trainer.{name}" for name in _trainer_arguments() if name not in TrainerConfig.RESERVED}
    return found - {*in_files()}


def _trainer_arguments() -> list[str]:
    """The arguments of Lightning's `Trainer`, from its source: importing it takes seconds."""
    package = importlib.util.find_spec("lightning")
    file = Path(package.origin or "").parent / "pytorch/trainer/trainer.py" if package is not None else None
    if file is None or not file.is_file():
        return []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return [argument.arg for argument in node.args.kwonlyargs]
    return []


def meant(key: str, value: str = "", present: Iterable[str] | None = None) -> list[str]:
    """The overrides that a user may have meant by an unknown key: the choice of a group, or keys of the same name.

    Args:
        key: as typed, without a sign.
        value: as typed, after the equals sign.
        present: the keys of the composed configuration, which need no plus; by default those of the files.
    """
    known = {*present} if present is not None else {*in_files()}
    section, _, word = key.lower().rpartition(".")
    if word in ON_A_GPU:
        return ["trainer=default" if value == "cpu" else "trainer=gpu"]
    top = key.partition(".")[0]
    owners = [
        choice
        for (group, choice), keys in by_choice().items()
        if group == top and any(one == key or one.startswith(f"{key}[") for one in keys)
    ]
    if owners:
        return [f"{top}={choice} {key}={value}" for choice in owners[:MOST]]
    of_value = [group for group, choices in groups().items() if value.partition(",")[0] in choices]
    near = difflib.get_close_matches(word, of_value, cutoff=0.6) if not section else []
    if near:
        return [f"{near[0]}={value}"]
    every = [*sorted(known), *(one for one in (*in_files(), *sorted(to_add())) if one not in known)]
    nested = [one for one in every if "." in one]
    last = ALSO_CALLED.get(word, word)
    found = [one for one in every if _bare(one) in (_bare(key), _bare(word))]
    found = found or [one for one in nested if one.rpartition(".")[2] == last]
    if not found and not section and of_value:
        return [f"{group}={value}" for group in of_value[:MOST]]
    found = found or [one for one in nested if one in known and _is_near(last, one.rpartition(".")[2])]
    found = found or [one for one in nested if _is_near(last, one.rpartition(".")[2])]
    found = [one for one in found if not one.startswith("callbacks.")] or found
    found.sort(key=lambda one: one not in known)
    return [f"{'' if one in known else '+'}{one}={value}" for one in found[:MOST]]


def _bare(key: str) -> str:
    return re.sub(r"[._-]", "", key.lower())


def _is_near(word: str, other: str) -> bool:
    """Whether one may be meant by the other: it contains it, or most letters agree."""
    if len(word) > 3 and word in other:
        return True
    return difflib.SequenceMatcher(None, word, other).ratio() >= 0.75


def of_group(group: str, value: str) -> list[str]:
    """Numbers given to a group, given to its keys instead: latent=64 → latent.dim=64."""
    if not all(NUMBER.fullmatch(one) for one in value.split(",")):
        return []
    numbers = [
        key
        for key, default in in_files().items()
        if re.fullmatch(rf"{re.escape(group)}\.\w+", key) and type(default) in (int, float)
    ]
    return [f"{key}={value}" for key in numbers[:MOST]]
