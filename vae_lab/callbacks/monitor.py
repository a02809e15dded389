"""What of a training can be followed beside its losses: learning rate, gradient norm, memory, the latent dimensions."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vae_lab.machine import peak_memory
from vae_lab.metrics import MOST_KL, exploding
from vae_lab.module import LitVAE

log = logging.getLogger(__name__)


class Monitor(Callback):
    """Logs once an epoch, and tells an exploding KL divergence at once.

    - `optimizer/learning_rate`: that of the epoch's last step.
    - `optimizer/gradient_norm`: Euclidean norm over all weights, before clipping, averaged over the epoch's first step
      and every tenth after it.
    - `memory/peak_megabytes`: as `peak_bytes` of `result.json`, so far.
    - `val/kl_per_dimension`, in TensorBoard: histogram of the validation images' mean KL divergence of each latent
      dimension, in nats.

    The figures are part of every checkpoint: a run that goes on from one logs those of the epochs before it anew.

    Args:
        every_steps: steps from one gradient norm to the next; it costs a pass over all gradients.

    Raises:
        ValueError: if `every_steps` is not at least 1.
    """

    def __init__(self, every_steps: int = 10) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, but is {every_steps}")
        self.every_steps = every_steps
        self._norms: list[Tensor] = []
        self._steps = 0
        self._learning_rate = 0.0
        self._told = False
        self._figures: dict[int, dict[str, float]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"figures": {epoch: {**figures} for epoch, figures in self._figures.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._figures = {epoch: {**figures} for epoch, figures in state_dict["figures"].items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for epoch, figures in self._figures.items():
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=epoch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if self._steps % self.every_steps == 0:
            self._norms.append(get_total_norm([w.grad for w in pl_module.parameters() if w.grad is not None]))
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        figures = {"optimizer/learning_rate": self._learning_rate}
        if self._norms:
            figures["optimizer/gradient_norm"] = torch.stack(self._norms).mean().item()
        self._steps, self._norms = 0, []
        memory = peak_memory(pl_module.device)
        if memory is not None:
            figures["memory/peak_megabytes"] = memory / 1e6
        pl_module.log_dict(figures)
        self._figures[pl_module.epochs_done] = figures
        self._tell(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        kl = pl_module.averages["val"].kl_per_dimension()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and kl is not None:
                logger.experiment.add_histogram("val/kl_per_dimension", kl, pl_module.epochs_done)

    def _tell(self, module: LitVAE) -> None:
        kl = max(module.averages[split].value()["kl"] for split in ("train", "val") if split in module.averages)
        if kl > MOST_KL and not self._told:
            self._told = True
            log.warning("%s", exploding(module.epochs_done, kl))
