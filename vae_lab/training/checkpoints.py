"""The checkpoints from which an interrupted run resumes."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vae_lab import compat, results
from vae_lab.training.module import LitVAE

LAST, BEST = "last.ckpt", "best.ckpt"
OURS = "vae_lab"
"""Our own entry in a checkpoint, beside Lightning's."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed, with its path and the reason."""


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
        self._is_best = self.best is None or total < self.best
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
        CheckpointError: if it is damaged, or contains objects that torch does not consider safe.
    """
    check_archive(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"{path} is damaged ({_first_line(error)})") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is damaged (it holds a {type(loaded).__name__})")
    return loaded


def check_archive(path: Path) -> None:
    """Check every record of a checkpoint against its CRC-32; torch writes these checksums but does not check them.

    Raises:
        CheckpointError: if one differs, or the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
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
    if not path.exists():
        return 0
    loaded = read_checkpoint(path)
    try:
        found, epochs = loaded[OURS]["origin"], int(loaded[OURS]["epochs"])
        best = loaded["callbacks"][Checkpoints.__qualname__]["best"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of this version") from error
    differing = [
        f"{key} was {found.get(key)!r}, is {value!r}" for key, value in origin.items() if found.get(key) != value
    ]
    if differing:
        raise CheckpointError(f"{path} was not written by the same run ({'; '.join(differing)})")
    if best is not None:
        check_archive(folder / BEST)
    return epochs


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
