"""The checkpoints from which an interrupted run resumes."""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from vae_lab import compat, results
from vae_lab.config.text import one_line
from vae_lab.results.reading import UnreadableError, archive, opened
from vae_lab.training.module import LitVAE

LAST, BEST = "last.ckpt", "best.ckpt"
OURS = "vae_lab"
"""Our own entry in a checkpoint, beside Lightning's."""
LARGEST_CONTAINERS = 2**24
"""Size limit in bytes of what is not tensors; torch reads about a megabyte per second of it."""
LONGEST = 1000
"""Length limit of an error message, which may quote a file."""
DEEPEST = 100
"""The most levels of nested containers."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed, with its path and the reason."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text[:LONGEST]))


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` after every epoch, and `best.ckpt` at the lowest total of one split so far.

    Args:
        folder: where they go.
        origin: what must match between the run that wrote a checkpoint and the run that resumes from it.
        split: `val`, or `train` without validation.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], split: str = "val") -> None:
        self.folder = folder
        self.origin = dict(origin)
        self.split = split
        self.best: float | None = None
        self._is_best = False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and self.split == "val":
            self._update_best(pl_module)
            if self._is_best and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                trainer.save_checkpoint(self.folder / BEST)  # mid-epoch: `last.ckpt` will differ from it
                self._is_best = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.split == "train":
            self._update_best(pl_module)
        is_best, self._is_best = self._is_best, False
        if not is_best:
            trainer.save_checkpoint(self.folder / LAST)
            return
        # Best first: if the process dies between the two, the resumed run repeats the epoch and writes the best again.
        trainer.save_checkpoint(self.folder / BEST)
        if trainer.is_global_zero:
            results.write_same(self.folder / LAST, self.folder / BEST)

    def _update_best(self, module: LightningModule) -> None:
        assert isinstance(module, LitVAE)
        total = module.averages[self.split].value()["total"]
        self._is_best = self.best is None or math.isnan(self.best) or total < self.best
        if self._is_best:
            self.best = total

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for count in progress.values():
            count["completed"] = count["processed"]  # Lightning counts the epoch after saving it
        epochs = progress["current"]["processed"]
        checkpoint[OURS] = {"origin": self.origin, "epochs": epochs, "stopped": trainer.should_stop}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint[OURS]["stopped"]  # a callback may have ended the training early

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        compat.start_epoch_afresh(trainer)


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoint files for Lightning: written atomically, read without running code in them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # torch's own writer hides a full disk behind other errors
        torch.save(checkpoint, content)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        results.write_bytes(Path(path), content.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU: tensors and plain containers; none of its code is run.

    Raises:
        CheckpointError: if it is damaged, was not written by this version, or contains objects that torch does not
            consider safe.
    """
    check_archive(path)
    try:
        with opened(path) as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"{path} is damaged ({_first_line(error)})") from error
    try:
        _check_content(loaded)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise CheckpointError(f"{path} is not a checkpoint of this version ({reason})") from error
    return cast("dict[str, Any]", loaded)


class _Own(BaseModel):
    """Our own entry of a checkpoint."""

    model_config = ConfigDict(strict=True)

    origin: dict[str, str | int]
    epochs: Annotated[int, Field(ge=0, lt=2**31)]
    stopped: bool


class _Best(BaseModel):
    best: float | None


class _Progress(BaseModel):
    """Lightning's counts of epochs."""

    model_config = ConfigDict(strict=True)

    ready: int
    completed: int


class _Content(BaseModel):
    """What resuming relies on; Lightning compares the rest with the run's own parts."""

    own: Annotated[_Own, Field(alias=OURS)]
    state_dict: dict[str, Any]
    optimizer_states: list[dict[str, Any]]
    lr_schedulers: list[dict[str, Any]]
    loops: dict[str, Any]
    callbacks: dict[str, Any]


def _check_content(loaded: Any) -> None:
    """Check the form of a checkpoint.

    Raises:
        ValueError: if it is of another form.
    """
    _Content.model_validate(loaded)
    _Best.model_validate(loaded["callbacks"].get(Checkpoints.__qualname__))
    progress = _Progress.model_validate(loaded["loops"]["fit_loop"]["epoch_progress"]["current"])
    epochs = loaded[OURS]["epochs"]
    if progress.completed != epochs or progress.ready - epochs not in (0, 1):  # 1: written within an epoch
        raise ValueError("its counts of epochs differ")
    parts = [(loaded, 0)]
    seen: set[int] = set()
    while parts:
        part, depth = parts.pop()
        if isinstance(part, Tensor) and part.numel() * part.element_size() > part.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(part.shape)} has fewer values")
        if isinstance(part, dict | list | tuple | set) and id(part) not in seen:
            seen.add(id(part))  # a container may hold itself
            if depth > DEEPEST:
                raise ValueError(f"containers are nested more than {DEEPEST} deep")
            inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            parts.extend((one, depth + 1) for one in inner)


def load_best(module: LitVAE, folder: Path) -> int:
    """Give a module the weights with the lowest total so far of the split that checkpoints go by.

    Returns:
        The number of whole epochs that they were trained.

    Raises:
        CheckpointError: if that checkpoint cannot be read.
    """
    loaded = read_checkpoint(folder / BEST)
    module.load_state_dict(loaded["state_dict"])
    return int(loaded[OURS]["epochs"])


def check_archive(path: Path) -> None:
    """Check every record of a checkpoint against its CRC-32; torch writes these checksums but does not check them.

    Raises:
        CheckpointError: if one differs, or the file cannot be read.
    """
    try:
        with archive(path) as found:
            containers = sum(one.file_size for one in found.infolist() if one.filename.endswith(".pkl"))
            if containers > LARGEST_CONTAINERS:
                raise CheckpointError(f"{path} is damaged (its containers are too large)")
            damaged = found.testzip()
    except UnreadableError as error:
        raise CheckpointError(f"{path} {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged file
        raise CheckpointError(f"{path} is damaged ({_first_line(error)})") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (the checksum of {damaged} differs)")


def epochs_kept(folder: Path, origin: Mapping[str, Any]) -> int:
    """The epoch after which a run can resume from the checkpoints in `folder`; 0 without a checkpoint.

    Raises:
        CheckpointError: if one is damaged, or was written by another configuration, machine or version.
    """
    path = folder / LAST
    if not os.path.lexists(path):
        return 0
    loaded = read_checkpoint(path)
    found, epochs = loaded[OURS]["origin"], loaded[OURS]["epochs"]
    differing = [
        f"{key} was {found.get(key)!r}, is {value!r}" for key, value in origin.items() if found.get(key) != value
    ]
    if differing:
        raise CheckpointError(f"{path} was not written by the same run ({'; '.join(differing)})")
    if loaded["callbacks"][Checkpoints.__qualname__]["best"] is not None:
        check_archive(folder / BEST)
    return int(epochs)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
