"""Compute the test metrics of finished runs from their weights."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vae_lab import config, results
from vae_lab.config import Config, MetricsConfig, Run, fingerprint
from vae_lab.data import DataError, shards
from vae_lab.data.devices import on_gpu
from vae_lab.evaluation.measure import measure
from vae_lab.evaluation.symptoms import kl_divisor, symptoms
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only
from vae_lab.model.layout import channels_last
from vae_lab.model.match import matched
from vae_lab.model.weights import load_weights
from vae_lab.objectives.base import Objective
from vae_lab.results import Result


def complete(run: Run, result: Result) -> Result:
    """Add the configured test metrics to a trusted finished run, and rewrite its `result.json`.

    Raises:
        DataError: if the images cannot be read.
        OSError: if the weights are missing, or the result cannot be written.
    """
    match = matched(run.config)
    settings = match.config if match else run.config
    model, weights = vae.build(settings), run.directory / results.WEIGHTS
    if not weights.exists():
        raise OSError(f"{weights} is missing, to measure by; remove {results.RESULT} to have the run done again")
    load_weights(model, weights)
    torch.set_num_threads(settings.trainer.threads)
    device = torch.device("cuda" if on_gpu(settings) else "cpu")
    objective = config.build(settings.objective)
    return remeasure(run.directory, result, settings, model.to(device), objective, settings.metrics, resumes=True)


def remeasure(
    folder: Path,
    result: Result,
    settings: Config,
    model: vae.VAE,
    objective: Objective | None,
    asked: MetricsConfig,
    *,
    resumes: bool = False,
) -> Result:
    """Compute the requested test metrics and those that a finished run already has; rewrites its `result.json`.

    Custom metrics that the run already has keep their values unless they are requested again. With `resumes` it goes on
    with what an interrupted evaluation has left in the folder, which must be trusted.

    Raises:
        DataError: if the images cannot be read, or are not those that the run was trained on.
        OSError: if the result cannot be written.
    """
    before = results.read_fingerprint(folder)
    if fingerprint.differing(before, fingerprint.of_images(settings.data)):
        raise DataError(f"{folder}: the images are not those that it was trained on; let data.root name their folder")
    known = result.measured()
    wanted = asked.with_all_of(known.model_copy(update={"further": {}})) if known else asked
    recorded = wanted.model_copy(update={"further": (known.further if known else {}) | asked.further})
    needs_training = wanted.probe or wanted.samplers or (wanted.frechet and settings.is_fashion_mnist)
    data = open_images(folder, settings, *(("fit", "test") if needs_training else ("test",)))
    started = time.perf_counter()
    figures, images = measure(
        channels_last(model), objective, data, settings, wanted, result.test.model_dump(), folder if resumes else None
    )
    updated = result.model_copy(
        update={
            "test": result.test.model_copy(update=figures),
            "timing": result.timing.model_copy(update={"metrics_seconds": time.perf_counter() - started}),
            "metrics": recorded.model_dump(),
            "warnings": [
                *symptoms(
                    figures,
                    results.kl_of_epochs(results.read_history(folder), kl_divisor(result.terms, model.latent_dim)),
                    model.latent_dim,
                ),
                *(
                    text
                    for text in result.warnings
                    if text.startswith((shards.BATCH_NORM, shards.PART_OF_BATCH, results.NOT_WRITTEN))
                ),  # from training
            ],
        }
    )
    results.write_test_images(folder, images)
    updated = updated.model_copy(update={"files": updated.files | results.checksums(folder, [results.TEST_IMAGES])})
    results.write_result(folder, updated)
    return updated


def open_images(folder: Path, settings: Config, *stages: str) -> Any:
    """Build the data module of a run's configuration, set up for the given Lightning stages.

    Raises:
        DataError: if the images cannot be read.
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


def validation_bound(settings: Config, terms: Mapping[str, float | None]) -> float | None:
    """The evidence lower bound in nats per image, computed from the validation terms; None if that is impossible."""
    known = {term: value for term, value in terms.items() if value is not None}
    if not {"reconstruction", "kl"} <= known.keys():
        return None
    objective: Objective = config.build(settings.objective)
    with shapes_only():
        model = vae.build(settings)
    return objective.elbo(known, model) if objective.measures(model) else None
