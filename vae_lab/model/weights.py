"""Save and load a model's weights."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vae_lab import results
from vae_lab.results.reading import check_file

FORMAT = "1"


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights and buffers of `model` as safetensors, atomically.

    A tensor with several names is stored once; the file's metadata map the other names to the stored one, as those of
    `safetensors.torch.save_model` do.

    Raises:
        TypeError: if the model's state has something other than tensors.
        OSError: if the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    metadata = {"format": FORMAT}
    first: dict[Any, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, and only tensors can be stored")
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        if first.setdefault(place, name) == name:
            # A copy, because safetensors refuses two views of the same memory.
            tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
        else:
            metadata[name] = first[place]
    with results.replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata=metadata)
        os.umask(umask := os.umask(0))
        os.chmod(temporary, 0o666 & ~umask)  # safetensors makes files that only their owner can read


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, under all of their names."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = load_file(path)
    return tensors | {other: tensors[name] for other, name in metadata.items() if name in tensors}


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights into a model of the same architecture.

    Raises:
        RuntimeError: if a weight is missing, unexpected or of another shape.
        OSError: if the file is missing or is not a file.
    """
    check_file(path)
    model.load_state_dict(read_weights(path))
