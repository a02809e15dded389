"""Log hyperparameters, final metrics and images, in each logger's own way. The losses are logged elsewhere."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from vae_lab import compat, config
from vae_lab.config import Node, Run

USUAL = ("latent.dim", "objective.beta", "optimizer.lr", "trainer.max_epochs", "trainer.threads")
"""Values that are logged even if nobody set them. TensorBoard first shows five columns, in alphabetical order: decoder,
encoder and the first three of these."""


def hyperparameters(run: Run) -> dict[str, Any]:
    """The run's encoder, decoder and seed, the usual values, and all that its command line sets: one value each."""
    values = run.config.identity()
    chosen = {"encoder": run.encoder, "decoder": run.decoder, "seed": run.config.seed}
    usual = {key: values[key] for key in USUAL if key in values}
    given = {key: values.get(key, value) for key, value in run.given.items()}
    return {key: _plain(value) for key, value in (chosen | usual | given).items()}


def _plain(value: Any) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else str(value)


@contextmanager
def opened(nodes: Iterable[Node], parameters: Mapping[str, Any]) -> Iterator[list[Logger]]:
    """Build the loggers of a run, log its hyperparameters, and close the loggers after the run.

    TensorBoard gets the hyperparameters at the end: its HPARAMS page needs the metrics that belong to them, and shows
    -1 for a metric that is missing.
    """
    loggers = [config.build(node) for node in nodes]
    try:
        for logger in loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(dict(parameters))
        yield loggers
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):  # one run at a time: else the next run would continue this one
                logger.experiment.finish()


def log_end(
    loggers: Iterable[Logger],
    parameters: Mapping[str, Any],
    terms: Iterable[str],
    figures: Mapping[str, Any],
    step: int,
) -> None:
    """Log the test metrics; on TensorBoard's HPARAMS page also the hyperparameters that they belong to.

    Args:
        loggers: the loggers.
        parameters: the result of `hyperparameters`.
        terms: the terms of the objective, which the test itself has logged.
        figures: the test metrics by name; values that are not numbers are left out.
        step: the number of epochs trained.
    """
    numbers = {f"test/{name}": float(value) for name, value in figures.items() if type(value) in (int, float)}
    names = [*(f"test/{term}" for term in terms), *numbers]
    for logger in loggers:
        logger.log_metrics(numbers, step=step)
        if isinstance(logger, TensorBoardLogger):
            compat.add_hyperparameters(logger.experiment, parameters, names)


def log_image(loggers: Iterable[Logger], name: str, image: UInt8[Tensor, "3 height width"], step: int) -> None:
    """Log an image to each logger that takes images."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [to_pil_image(image)], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, to_pil_image(image), key=name, step=step)
