"""Synchronise the processes of one run."""

from lightning.pytorch import Callback, LightningModule, Trainer

from vae_lab.data import shards
from vae_lab.training.module import LitVAE


class Together(Callback):
    """Combines the averages of all processes, and lets all evaluate the same model. Other callbacks come after it.

    The running statistics of batch normalisation differ between processes. All take those of the first process, which
    are also the ones in the checkpoints.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average(pl_module, "train")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shards.align_buffers(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average(pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shards.align_buffers(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average(pl_module, "test")

    def _average(self, module: LightningModule, split: str) -> None:
        assert isinstance(module, LitVAE)
        module.averages[split].bring_together()
