"""The vocabulary of an architecture file: what each of its words builds. The words' schema is in `config`."""

from vae_lab.model.blocks.builders import BUILDERS, Place, build, builds, complete, enclose
from vae_lab.model.blocks.layers import FitError, Shape, Style, describe, shapes_only, transpose

__all__ = [
    "BUILDERS",
    "FitError",
    "Place",
    "Shape",
    "Style",
    "build",
    "builds",
    "complete",
    "describe",
    "enclose",
    "shapes_only",
    "transpose",
]
