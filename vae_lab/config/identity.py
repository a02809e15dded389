"""The identity of a run: the keys that can change a result, and the name of a cell."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vae_lab.config import signatures

LONGEST_CELL = 120

# These keys do not change what a run computes. They are not part of a cell's name or its checksum.
NOT_IDENTIFYING = (
    "seed",
    "name",
    "experiment",
    "metrics",
    "plan",
    "published",
    "data.root",
    "data.workers",
    "data.in_memory",
    "trainer.log_every_n_steps",
    "trainer.profiler",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_autolog_hparams",
    "trainer.num_sanity_val_steps",
)

# In these groups each entry may change results or not; see `changes_results`.
BESIDE_TRAINING = ("callbacks", "logger")

# Of callbacks and loggers that may change results, these keys do not.
NEVER_CHANGING = ("save_dir", "dirpath", "log_dir", "root_dir", "default_root_dir", "verbose")

CHANGES_RESULTS = "changes_results"
"""The key beside `_target_` by which a user says whether a callback or logger changes results."""

WATCHING = (
    "lightning.pytorch.loggers.",
    "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.ModelSummary",
    "lightning.pytorch.callbacks.OnExceptionCheckpoint",
    "lightning.pytorch.callbacks.RichModelSummary",
    "lightning.pytorch.callbacks.RichProgressBar",
    "lightning.pytorch.callbacks.TQDMProgressBar",
    "lightning.pytorch.callbacks.ThroughputMonitor",
)
"""Lightning's loggers and callbacks that only observe training."""


def changes_results(node: Any) -> bool:
    """Whether a callback or a logger can change what a run computes.

    vae_lab's classes have an attribute for it, and Lightning's are known. Any other class counts as changing results
    unless its section has `changes_results: false`.
    """
    if not isinstance(node, Mapping):
        return False
    if isinstance(node.get(CHANGES_RESULTS), bool):
        return bool(node[CHANGES_RESULTS])
    target = str(node.get("_target_"))
    if target.startswith("vae_lab."):
        return bool(signatures.attribute("callbacks", target, CHANGES_RESULTS, default=True))
    return not target.startswith(WATCHING)


def identifying(overrides: Iterable[str], composed: Mapping[str, Any]) -> dict[str, str]:
    """The overridden keys that can change a result, except encoder and decoder: key to value as typed.

    Args:
        overrides: words of the command line, `key=value` with Hydra's `+`, `++` or `~` in front.
        composed: the resulting configuration, of which only callbacks, loggers and the trainer are used.
    """
    given: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        parts = key.split(".")
        if key in ("encoder", "decoder", *NOT_IDENTIFYING) or parts[0] in NOT_IDENTIFYING:
            continue
        if re.split(r"[/@]", parts[0])[0] == "hydra":  # how runs are started: an experiment file may choose a launcher
            continue
        if parts[0] in BESIDE_TRAINING and (parts[-1] in NEVER_CHANGING or not _belongs_to_changing(parts, composed)):
            continue
        if key == "trainer.devices":  # the number of processes counts, and not which GPUs they use
            devices = (composed.get("trainer") or {}).get("devices", value)
            value = str(len(devices) if isinstance(devices, list) else devices)
            if value == "1":
                continue
        given[key] = value
    return given


def _belongs_to_changing(parts: list[str], composed: Mapping[str, Any]) -> bool:
    """Whether a key belongs to a callback or logger that changes results."""
    nodes = composed.get(parts[0]) or {}
    if not isinstance(nodes, Mapping):
        return False
    named = [nodes.get(parts[1])] if len(parts) > 1 else list(nodes.values())
    return any(changes_results(node) for node in named)


def cell_name(encoder: str, decoder: str, given: Mapping[str, str]) -> str:
    """`<encoder>-<decoder>`, then `__<key>-<value>` for each further overridden key that can change a result."""
    base = f"{encoder}-{decoder}"
    suffix = "".join(f"__{key}-{value}" for key, value in sorted(given.items()))
    cell = re.sub(r"[^\w.+-]", "-", base + suffix)
    if len(cell) <= LONGEST_CELL:
        return cell
    return re.sub(r"[^\w.+-]", "-", base)[:80] + "__" + hashlib.sha256(suffix.encode()).hexdigest()[:10]


def is_free(key: str) -> bool:
    """Whether a flattened key, or the section that it is in, changes no result."""
    return any(key == free or key.startswith(f"{free}.") for free in NOT_IDENTIFYING)


def is_place(key: str, value: Any, name: Any, seed: Any) -> bool:
    """Whether a flattened key only says where the run with this name and seed writes, or how much it prints."""
    text = value if isinstance(value, str) else ""
    own = re.escape(f"seed-{seed}")
    if re.search(rf"(^|/){re.escape(str(name))}/[^/]+/{own}(/|$)", text):  # the run's folder
        return True
    group, *rest = key.split(".")
    if group not in BESIDE_TRAINING or not rest:
        return False
    return rest[-1] in NEVER_CHANGING or (group == "logger" and text == name) or bool(re.search(rf"(^|/){own}$", text))
