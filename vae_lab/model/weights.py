"""Save and load a model's weights."""

import os
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from vae_lab import results
from vae_lab.results.reading import check_file

FORMAT = "1"


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights and buffers of `model` as safetensors, atomically."""
    with results.replacing(path) as temporary:
        save_model(model, str(temporary), metadata={"format": FORMAT})
        os.umask(umask := os.umask(0))
        os.chmod(temporary, 0o666 & ~umask)  # safetensors makes files that only their owner can read


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights into a model of the same architecture.

    Raises:
        RuntimeError: if a weight is missing, unexpected or of another shape.
        OSError: if the file is missing or is not a file.
    """
    check_file(path)
    load_model(model, str(path))
