"""Load the model of a run folder. The folder may be untrusted: none of its code is run."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vae_lab import compat, config
from vae_lab.config import Config, ConfigError
from vae_lab.config.vocabulary import FitError
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.weights import read_weights
from vae_lab.results import CONFIG
from vae_lab.results.reading import opened
from vae_lab.trained import foreign
from vae_lab.trained.foreign import LoadError
from vae_lab.trained.trust import Allowed, Buildable, Trust

__all__ = ["LoadError", "load"]

LONGEST_HEADER = 2**24
"""Size limit of the header with the names and shapes of the weights; about 100 bytes per tensor."""
MOST_CALLS = 50_000
"""Calls of torch that lay out a model; 500 convolutions with normalisation take 30,000, in some seconds."""
FLOATING = ("F64", "F32", "F16", "BF16")
WHOLE = ("BOOL", "U8", "I8", "I16", "I32", "I64", "U16", "U32", "U64")


def load(
    run: str | os.PathLike[str],
    allow: Allowed | Iterable[Allowed] = (),
    device: str | torch.device = "cpu",
    best: str | None = None,
) -> vae.VAE:
    """The model of a finished run, in evaluation mode, in 32-bit floats.

    The folder may be untrusted. Weights are read from `model.safetensors`, which cannot contain code. Only the model's
    parts in `config.yaml` are built, and only from classes of this package, of `torch.nn` and of `allow`. Nothing else
    that it names is imported.

    Args:
        run: a run's folder, `outputs/<name>/<cell>/seed-<n>`; with `best`, that of a sweep or a cell.
        allow: further classes that the model may use: classes, or names of packages, modules or classes, which are
            then imported from Python's path.
        device: the model's device.
        best: a dotted figure of `result.json` such as `val.total`; loads the finished run with the best value.

    Raises:
        LoadError: if the folder does not exist or has no finished run, if files are missing, damaged or inconsistent,
            or if a class is not allowed.
    """
    try:
        trust = Trust(allow)
        target = _device(device)
    except ValueError as error:
        raise LoadError(str(error)) from error
    folder, result = foreign.choose(Path(run), best)
    weights = foreign.check_weights(folder, result)
    settings = read_settings(folder)
    try:
        classes = trust.classes_of(settings)
        model = _built(settings, classes, weights)
    except (FitError, ConfigError) as error:
        raise LoadError(f"{folder / CONFIG}: {_first(error)}") from error
    try:
        return model.to(target).eval()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise LoadError(f"the model cannot go to device {str(device)!r}: {error}") from error


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"there is no device {device!r}; take 'cpu', 'cuda' or 'mps'") from error


def _first(error: ValueError) -> str:
    if isinstance(error, ConfigError):
        more = len(error.problems) - 1
        return str(error.problems[0]) + (f" (and {more} more)" if more else "")
    return _first_line(error)


def read_settings(folder: Path) -> Config:
    """The configuration of an untrusted folder; nothing that it names is imported.

    Raises:
        LoadError: if it is missing, damaged or not valid.
    """
    # Sections that a later version adds do not affect the model.
    known = {key: value for key, value in foreign.read_plain_config(folder).items() if key in Config.model_fields}
    try:
        return config.validate(known)
    except ConfigError as error:
        raise LoadError(f"{folder / CONFIG}: {_first(error)}") from error


# --- The weights -------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """Shape and type of a tensor, from the header of the weights."""

    shape: tuple[int, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} {self.shape}"


def _built(settings: Config, classes: Mapping[str, Buildable], path: Path) -> vae.VAE:
    """Build the model and load its weights; memory is allocated only after their shapes are checked."""
    stored = _header(path)
    with config.found_by(classes.__getitem__), torch.random.fork_rng(devices=[]), torch.no_grad():
        with shapes_only(), _Limited():
            sketch = vae.build(settings)
            if not all(isinstance(half, config.Network) for half in (settings.encoder, settings.decoder)):
                vae.check_shapes(sketch, settings.data.image_shape)  # lists of blocks check their own shapes
            _check_weights(sketch, stored, path)
        with torch.device("cpu"):
            model = vae.build(settings).float()
        try:
            model.load_state_dict(read_weights(path), strict=False)
        except Exception as error:  # safetensors and torch raise many types for a damaged file
            raise LoadError(f"{path} cannot be read ({_first_line(error)})") from error
    for name, parameter in model.named_parameters():
        if parameter.numel() and not all(one.isfinite() for one in parameter.aminmax()):
            raise LoadError(f"{path} is damaged: {name} has values that are not finite")
    return model


class _Limited(TorchFunctionMode):
    """Inside it a model is laid out with a limited number of calls: a small file can stand for a huge network."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._calls += 1
        if self._calls > MOST_CALLS:
            raise FitError("the model has too many layers to be built")
        return func(*args, **kwargs or {})


def _header(path: Path) -> dict[str, Stored]:
    """Name → shape and type of every tensor, under all of its names, without reading its values."""
    try:
        with opened(path) as file:
            length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise LoadError(f"{path} is damaged: its header would be {length:,} bytes long")
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            found = {name: Stored(tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
            metadata = tensors.metadata() or {}
            return found | {other: found[name] for other, name in metadata.items() if name in found}
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
        if compat.is_lazy_tensor(tensor):  # of a layer that forward() does not use
            raise _misfit(path, f"{name} has no shape before it is used")
        shape = tuple(tensor.shape)
        if name in stored:
            kinds, usual = (FLOATING, "F32") if tensor.is_floating_point() else (WHOLE, "I64")
            if stored[name].shape != shape or stored[name].kind not in kinds:
                raise _misfit(path, f"{name} is {stored[name]} in the weights, but {usual} {shape} in the model")
        elif id(tensor) not in written:  # of shared tensors only one is stored
            raise _misfit(path, f"{name} is missing in the weights, but {shape} in the model")
    left = next((name for name in stored if name not in wanted), None)
    if left is not None:
        raise _misfit(path, f"{left} is {stored[left]} in the weights, and is not in the model")


def _misfit(path: Path, text: str) -> LoadError:
    return LoadError(f"{path} does not fit {CONFIG} beside it: {text}")
