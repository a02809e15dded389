"""Public names: the class that `vae_lab.Name` stands for, in any file. Imports only the standard library.

A stored configuration names `vae_lab.MseKl`, which stays valid when its module moves. An extension's class is public if
its file is in the folder of its family. Names of earlier versions still load, through `ALIASES`.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """`conf/`: inside the package where it is installed, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


FAMILIES = {
    "latent": ("model/latents", "Latent"),
    "posterior": ("model/posteriors", "Posterior"),
    "prior": ("model/priors", "Prior"),
    "likelihood": ("model/likelihoods", "Likelihood"),
    "objective": ("objectives", "Objective"),
    "callbacks": ("training/callbacks", "Callback"),
}
"""Config group → folder of its files, base class. Each choice of such a group is one class in its own file."""

_OTHERS = {
    "VAE": "model.vae",
    "load": "trained.loading",
    "LoadError": "trained.foreign",
    "NormalizedAdam": "training.optimizers",
    "Encoder": "model.networks",
    "Decoder": "model.networks",
    "ImageData": "data.sets",
    "FolderData": "data.folder",
    "Latent": "model.interfaces",
    "Posterior": "model.interfaces",
    "Prior": "model.interfaces",
    "Likelihood": "model.interfaces",
    "Objective": "objectives.base",
}

ALIASES = {
    "vae_lab.networks.Encoder": "vae_lab.Encoder",
    "vae_lab.networks.Decoder": "vae_lab.Decoder",
    "vae_lab.latent.Gaussian": "vae_lab.VectorLatent",
    "vae_lab.objective.mse_kl": "vae_lab.MseKl",
    "vae_lab.data.ImageData": "vae_lab.ImageData",
    "vae_lab.data.FolderData": "vae_lab.FolderData",
    "vae_lab.callbacks.Progress": "vae_lab.Progress",
    "vae_lab.callbacks.Monitor": "vae_lab.Monitor",
    "vae_lab.callbacks.Pictures": "vae_lab.Pictures",
    "vae_lab.callbacks.TensorBoardPages": "vae_lab.TensorBoardPages",
}
"""Names in configurations of version 0.1 → public names. Checksums use the names on the left."""

_FIRST = {public: first for first, public in ALIASES.items()}


@cache
def files(family: str) -> dict[str, Path]:
    """Public name → file of each class of a family. If a name occurs twice, the first file counts; see `duplicates`."""
    found: dict[str, Path] = {}
    for name, path in _classes(family):
        found.setdefault(name, path)
    return found


def _classes(family: str) -> Iterator[tuple[str, Path]]:
    folder, base = FAMILIES[family]
    for path in sorted((PACKAGE / folder).glob("*.py")):
        for name in re.findall(
            rf"^class ([A-Z]\w*)\((?:[A-Z]\w*)?{base}\)", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            yield name, path


def duplicates() -> Iterator[str]:
    """An error message for each name that two extensions share."""
    seen = dict(_OTHERS)
    for family in FAMILIES:
        for name, path in _classes(family):
            file = path.relative_to(PACKAGE).as_posix()
            if name in seen:
                yield f"vae_lab.{name} is defined in {seen[name]} and in {file}: rename one of the two"
            seen[name] = file


@cache
def homes() -> dict[str, str]:
    """Public name → module."""
    found = {name: f"vae_lab.{module}" for name, module in _OTHERS.items()}
    for family in FAMILIES:
        for name, path in files(family).items():
            found.setdefault(name, ".".join(["vae_lab", *path.relative_to(PACKAGE).with_suffix("").parts]))
    return found


def current(target: str) -> str:
    """The public name that a stored `_target_` stands for today; other names are unchanged."""
    return ALIASES.get(target, target)


def first(target: str) -> str:
    """The name that checksums use: that of the first version."""
    return _FIRST.get(target, target)
