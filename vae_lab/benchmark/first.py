"""When a training's first step has ended; imports no more than a training does."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

FIRST_STEP = "first step at "


class FirstStep(Callback):
    """Prints when the first step has ended."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 1:
            print(f"{FIRST_STEP}{time.time()}", flush=True)
