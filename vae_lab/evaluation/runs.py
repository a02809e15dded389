"""The test metrics of runs that have finished, from their weights."""

import time
from pathlib import Path
from typing import Any

import torch

from vae_lab import config, results
from vae_lab.config import Config, MetricsConfig, Run
from vae_lab.data import DataError, shards
from vae_lab.data.devices import on_gpu
from vae_lab.evaluation.measure import measure
from vae_lab.evaluation.symptoms import kl_divisor, symptoms
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.match import matched
from vae_lab.model.weights import load_weights
from vae_lab.objectives.base import Objective
from vae_lab.results import Result


def complete(run: Run, result: Result) -> Result:
    """A finished run of our own with the test metrics that are asked for now; its `result.json` is written anew.

    Raises:
        DataError: if the images are not to be had.
        OSError: if the weights are gone, or the result cannot be written.
    """
    match = matched(run.config)
    settings = match.config if match else run.config
    model, weights = vae.build(settings), run.directory / results.WEIGHTS
    if not weights.exists():
        raise OSError(f"{weights} is missing, to measure by; remove {results.RESULT} to have the run done again")
    load_weights(model, weights)
    torch.set_num_threads(settings.trainer.threads)
    place = torch.device("cuda" if on_gpu(settings) else "cpu")
    objective = config.build(settings.objective)
    return remeasure(run.directory, result, settings, model.to(place), objective, settings.metrics)


def remeasure(
    folder: Path,
    result: Result,
    settings: Config,
    model: vae.VAE,
    objective: Objective | None,
    asked: MetricsConfig,
) -> Result:
    """A finished run with the test metrics that are asked for beside those that it has; rewrites its `result.json`.

    Metrics of a user's own that the run has keep their figures unless they are asked for again.

    Raises:
        DataError: if the images are not to be had.
        OSError: if the result cannot be written.
    """
    known = result.measured()
    wanted = asked.with_all_of(known.model_copy(update={"further": {}})) if known else asked
    recorded = wanted.model_copy(update={"further": (known.further if known else {}) | asked.further})
    data = open_images(folder, settings, *(("fit", "test") if wanted.probe or wanted.samplers else ("test",)))
    started = time.perf_counter()
    figures = measure(model, objective, data, settings, wanted, result.test.model_dump())
    updated = result.model_copy(
        update={
            "test": result.test.model_copy(update=figures),
            "timing": result.timing.model_copy(update={"metrics_seconds": time.perf_counter() - started}),
            "metrics": recorded.model_dump(),
            "warnings": [
                *symptoms(
                    figures,
                    results.kl_of_epochs(results.read_history(folder), kl_divisor(result.terms, model.latent_dim)),
                ),
                *(told for told in result.warnings if told.startswith(shards.BATCH_NORM)),  # of the training
            ],
        }
    )
    results.write_result(folder, updated)
    return updated


def open_images(folder: Path, settings: Config, *stages: str) -> Any:
    """The images of a run's configuration: its data module, set up for these stages of Lightning's.

    Raises:
        DataError: if they are not to be had.
    """
    try:
        data = config.build(settings.data)
        data.prepare_data()
        for stage in stages:
            data.setup(stage)
    except DataError:
        raise
    except Exception as error:  # a data module or a data set may raise anything
        raise DataError(f"{folder}: its images cannot be read ({type(error).__name__}: {error})") from error
    return data


def validation_bound(settings: Config, result: Result) -> float | None:
    """The evidence lower bound in nats per image that the validation's terms amount to; None if it does not follow."""
    terms = result.val.model_dump()
    if any(terms.get(term) is None for term in ("reconstruction", "kl")):
        return None
    objective: Objective = config.build(settings.objective)
    with shapes_only():
        model = vae.build(settings)
    return objective.elbo(terms, model) if objective.measures(model) else None
