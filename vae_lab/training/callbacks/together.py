"""What several processes of one run must agree on."""

from lightning.pytorch import Callback, LightningModule, Trainer

from vae_lab.data import shards
from vae_lab.training.module import LitVAE


class Together(Callback):
    """Makes the averages of all processes one, and evaluates one model: the other callbacks come after it.

    Batch normalisation keeps running statistics of what a process has seen. The first process's are taken, which are
    also those of the checkpoints.
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
