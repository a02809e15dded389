"""The test metrics, measured at the end of the test."""

import logging
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from vae_lab import results
from vae_lab.config import Config
from vae_lab.evaluation.measure import kind_of_divergence, measure
from vae_lab.training.callbacks.history import History
from vae_lab.training.loggers import log_end
from vae_lab.training.machine import peak_memory
from vae_lab.training.module import LitVAE

log = logging.getLogger(__name__)


class Quality(Callback):
    """Measures and logs the metrics of the configuration; `figures` has their values, `seconds` their time.

    `divergence` says how the KL divergence is computed: `exact` or `estimated`; None if there is none.

    If a metric fails, for example for lack of memory or in a user's class, `error` gives the reason. The model is kept,
    and the same command measures it again. `peak_bytes` is the highest memory before the metrics.

    Args:
        settings: the run's configuration.
        parameters: its hyperparameters, as they are logged.
        history: its record, which has the test's losses.
    """

    def __init__(self, settings: Config, parameters: dict[str, Any], history: History) -> None:
        self.settings = settings
        self.parameters = parameters
        self.history = history
        self.figures: dict[str, Any] = {}
        self.divergence: Literal["exact", "estimated"] | None = None
        self.seconds = 0.0
        self.error: str | None = None
        self.peak_bytes: int | None = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LitVAE)
        losses = self.history.last("test")
        data = getattr(trainer, "datamodule", None)
        if losses is None or data is None:
            return
        self.peak_bytes = peak_memory(pl_module.device)
        if not trainer.is_global_zero:
            return
        started = time.perf_counter()
        try:
            self.divergence = kind_of_divergence(pl_module.vae)
            self.figures, images = measure(
                pl_module.vae,
                pl_module.objective,
                data,
                self.settings,
                self.settings.metrics,
                losses.terms,
                Path(trainer.default_root_dir),
            )
            results.write_test_images(Path(trainer.default_root_dir), images)
        except Exception as error:
            self.error = f"test metrics: they could not be taken ({type(error).__name__}: {error})"
            log.warning("%s", self.error, exc_info=True)
        self.seconds = time.perf_counter() - started
        log_end(trainer.loggers, self.parameters, losses.terms, self.figures, pl_module.epochs_done)
