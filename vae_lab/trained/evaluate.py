"""The test metrics of a finished run, perhaps a stranger's."""

from collections.abc import Iterable
from pathlib import Path

from vae_lab import config, results
from vae_lab.config import Config, DataConfig, FolderConfig, MetricsConfig
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
    is_ours = settings.objective.target.startswith("vae_lab.")  # another one's code is not run
    objective = config.build(settings.objective) if is_ours else None
    return remeasure(folder, result, settings, model, objective, asked)


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
