"""Compute the test metrics of a finished run, which may be untrusted."""

from collections.abc import Iterable
from pathlib import Path

from vae_lab import config, results
from vae_lab.config import Config, DataConfig, FolderConfig, MetricsConfig, names
from vae_lab.evaluation.runs import remeasure
from vae_lab.results import Result
from vae_lab.trained import foreign
from vae_lab.trained.foreign import LoadError
from vae_lab.trained.loading import load, read_settings
from vae_lab.trained.trust import Allowed

DATA_SETS = "torchvision.datasets"


def evaluate(
    folder: Path,
    asked: MetricsConfig,
    allow: Allowed | Iterable[Allowed] = (),
    device: str = "cpu",
    root: str | None = None,
) -> Result:
    """Measure a finished run's test metrics from its weights, and write them to its `result.json`.

    The folder may be untrusted, as in `load`. Only vae_lab's data modules and torchvision's data sets are accepted.

    Args:
        folder: the run's folder.
        asked: the metrics to compute; metrics that the run already has are computed again.
        allow: further classes that the model may use, see `load`.
        device: the device that computes.
        root: the folder of the data set's files, instead of the configuration's `data.root`.

    Raises:
        LoadError: if the folder has no finished run or is locked by another process, or its files are damaged or not
            allowed.
        DataError: if the images cannot be read.
        OSError: if the result cannot be written.
    """
    foreign.choose(folder)  # raises if it does not exist, before a lock file is created in it
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
    is_ours = settings.objective.target in (f"vae_lab.{name}" for name in names.files("objective"))
    objective = config.build(settings.objective) if is_ours else None
    return remeasure(folder, result, settings, model, objective, asked)


def with_trusted_images(folder: Path, settings: Config, root: str | None) -> Config:
    """The configuration of an untrusted run, if only vae_lab's and torchvision's code reads its images.

    Args:
        folder: the run's folder.
        settings: its configuration.
        root: the folder of the data set's files, instead of the configuration's `data.root`.

    Raises:
        LoadError: if other code would read them.
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
