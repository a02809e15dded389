"""Print the end of the first training step. This module imports nothing that training does not import."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

FIRST_STEP = "first step at "


class FirstStep(Callback):
    """Prints the time at which the first step ends."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            print(f"{FIRST_STEP}{time.time()}", flush=True)
