"""The test metrics of runs that have finished, from their weights."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vae_lab import config, results, share, vae
from vae_lab.checkpoint import load_weights
from vae_lab.config import Config, DataConfig, FolderConfig, MetricsConfig, Run
from vae_lab.data import DataError
from vae_lab.loading import LoadError, load, read_settings
from vae_lab.machine import on_gpu
from vae_lab.match import matched
from vae_lab.metrics import measure, symptoms
from vae_lab.results import Result, foreign
from vae_lab.trust import Allowed

DATA_SETS = "torchvision.datasets"


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
    return _measure(run.directory, result, settings, model.to(place), settings.metrics)


def evaluate(
    folder: Path,
    asked: MetricsConfig,
    allow: Allowed | Iterable[Allowed] = (),
    device: str = "cpu",
    root: str | None = None,
) -> Result:
    """Measure a finished run's test metrics from its weights, and write them to its `result.json`.

    The folder may come from somebody else, as in `load`; of data modules it takes ours, of data sets torchvision's.

    Args:
        folder: the run's folder.
        asked: which metrics; those that it has been measured by before are measured too.
        allow: what else the model may be made of, see `load`.
        device: where it is measured.
        root: the folder of the data set's files, in place of the configuration's `data.root`.

    Raises:
        LoadError: if the folder has no finished run, another process works in it, or the files are damaged or not
            allowed.
        DataError: if the images are not to be had.
        OSError: if the result cannot be written.
    """
    foreign.choose(folder)  # is there, before a lock is put into it
    with results.locked(folder) as owner:
        if owner is not None:
            raise LoadError(f"{folder} is in the hands of {owner}; measure it again when that has ended")
        return _evaluate(folder, asked, allow, device, root)


def _evaluate(
    folder: Path, asked: MetricsConfig, allow: Allowed | Iterable[Allowed], device: str, root: str | None
) -> Result:
    folder, result = foreign.choose(folder)
    model = load(folder, allow, device)
    settings = with_trusted_images(folder, read_settings(folder), root)
    return _measure(folder, result, settings, model, asked)


def with_trusted_images(folder: Path, settings: Config, root: str | None) -> Config:
    """The configuration of a run that may be a stranger's, if its images are read by our code and torchvision's alone.

    Args:
        folder: the run's folder.
        settings: its configuration.
        root: the folder of the data set's files, in place of the configuration's `data.root`.

    Raises:
        LoadError: if they are not.
    """
    trusted = isinstance(settings.data, FolderConfig) or (
        isinstance(settings.data, DataConfig) and settings.data.dataset.rpartition(".")[0] == DATA_SETS
    )
    if not trusted:
        name = settings.data.dataset if isinstance(settings.data, DataConfig) else settings.data.target
        raise LoadError(
            f"{folder}: its images come from {name!r}, which is not of {DATA_SETS}; a run of your own is measured by "
            "the command that trained it, with metrics=full"
        )
    if root is None:
        return settings
    return settings.model_copy(update={"data": settings.data.model_copy(update={"root": root})})


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


def _measure(folder: Path, result: Result, settings: Config, model: vae.VAE, asked: MetricsConfig) -> Result:
    known = result.measured()
    wanted = asked.with_all_of(known) if known else asked
    data = open_images(folder, settings, *(("fit", "test") if wanted.probe or wanted.samplers else ("test",)))
    started = time.perf_counter()
    figures = measure(model, data, settings, wanted, result.test.model_dump())
    updated = result.model_copy(
        update={
            "test": result.test.model_copy(update=figures),
            "timing": result.timing.model_copy(update={"metrics_seconds": time.perf_counter() - started}),
            "metrics": wanted.model_dump(),
            "warnings": [
                *symptoms(figures, results.kl_of_epochs(results.read_history(folder))),
                *(told for told in result.warnings if told.startswith(share.BATCH_NORM)),  # of the training
            ],
        }
    )
    results.write_result(folder, updated)
    return updated
