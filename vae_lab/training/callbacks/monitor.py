"""Log more than the losses: learning rate, gradient norm, memory and the KL divergence per latent dimension."""

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from vae_lab.config.base import Count
from vae_lab.evaluation.symptoms import MOST_KL, exploding, kl_divisor
from vae_lab.training.machine import peak_memory
from vae_lab.training.module import LitVAE

log = logging.getLogger(__name__)


class Monitor(Callback):
    """Logs once per epoch, and warns at once if the KL divergence explodes; a resumed run logs earlier epochs again.

    - `optimizer/learning_rate`: the learning rate of the epoch's last step.
    - `optimizer/gradient_norm`: Euclidean norm over all trained weights, before clipping, averaged over the
      epoch's first step and every tenth step after it; steps that overflow in 16 bits, and are skipped, do not count.
    - `memory/peak_megabytes`: the highest memory so far, measured as `peak_bytes` of `result.json`.
    - `val/kl_per_dimension`, in TensorBoard: histogram of the validation images' mean KL divergence of each latent
      dimension, in nats.

    Args:
        every_steps: steps between two gradient norms; each one is a pass over all gradients.

    Raises:
        ValueError: if `every_steps` is not at least 1.
    """

    changes_results = False

    def __init__(self, *, every_steps: Count = 10) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, but is {every_steps}")
        self.every_steps = every_steps
        self._norms: list[Tensor] = []
        self._steps = 0
        self._learning_rate = 0.0
        self._warned = False
        self._logged: dict[int, dict[str, float]] = {}
        self._kl: dict[int, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"logged": {**self._logged}, "kl": {**self._kl}, "told": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._logged, self._kl, self._warned = ({**state_dict["logged"]}, {**state_dict["kl"]}, state_dict["told"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for epoch, figures in self._logged.items():
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=epoch)
        for epoch, kl in self._kl.items():
            _log_histogram(trainer, kl, epoch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]
        if self._steps % self.every_steps == 0:
            self._norms.append(get_total_norm(_gradients(optimizer)))
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        figures = {"optimizer/learning_rate": self._learning_rate}
        if self._norms:
            norms = torch.stack(self._norms)
            figures["optimizer/gradient_norm"] = norms[norms.isfinite()].mean().item()
        self._steps, self._norms = 0, []
        memory = peak_memory(pl_module.device)
        if memory is not None:
            figures["memory/peak_megabytes"] = memory / 1e6
        pl_module.log_dict(figures)
        self._logged[pl_module.epochs_done] = figures
        self._warn_if_exploding(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        kl = pl_module.averages["val"].kl_per_dimension()
        if kl is not None and trainer.state.fn == "fit":
            self._kl[pl_module.epochs_done] = kl.cpu()
            _log_histogram(trainer, kl, pl_module.epochs_done)

    def _warn_if_exploding(self, module: LitVAE) -> None:
        values = [module.averages[split].value() for split in ("train", "val") if split in module.averages]
        kl = max(value.get("kl", 0.0) for value in values)
        kl /= kl_divisor(module.objective.units, module.vae.latent_dim)
        if kl > MOST_KL and not self._warned:
            self._warned = True
            log.warning("%s", exploding(module.epochs_done, kl))


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [weight.grad for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]


def _log_histogram(trainer: Trainer, kl: Tensor, epoch: int) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram("val/kl_per_dimension", kl, epoch)
