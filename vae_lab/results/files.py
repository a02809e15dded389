"""The files of a run: written atomically, judged when read."""

import csv
import io
import math
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vae_lab.config import MetricsConfig
from vae_lab.results.plain import load_plain
from vae_lab.results.writing import write_text

RESULT, CONFIG, HISTORY, TRACEBACK = "result.json", "config.yaml", "history.csv", "traceback.txt"
MODEL = "model.txt"
CHECKPOINTS, WEIGHTS, EVENTS = "checkpoints", "model.safetensors", "events.out.tfevents.*"
CSV_LOG = "csv"  # the folder of conf/logger/csv.yaml
PROJECTOR = "projector"
EXPORT = "export"
PICTURES, SHEETS = "pictures.npz", ("reconstructions.png", "samples.png")
COLUMNS = ("epoch", "split", "total", "reconstruction", "kl", "seconds")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A figure that cannot be had is null, never NaN: JSON has no NaN.
Figure = Annotated[float | None, BeforeValidator(_finite)]


Count = Annotated[int | None, BeforeValidator(_finite)]


class Part(BaseModel):
    """A part of a result; later versions add keys."""

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)


class Losses(Part):
    """Averages over the images of a split."""

    total: Figure = None
    reconstruction: Figure = None
    kl: Figure = None


class Test(Losses):
    """The losses of the test, and the further metrics: null where they were not asked for or cannot be had.

    `vae_lab.metrics` defines them; in nats an image where nothing else is said.
    """

    elbo: Figure = None
    iwae_1: Figure = None
    iwae_10: Figure = None
    iwae_100: Figure = None
    bits_per_dim: Figure = None
    kl_per_dimension: list[Figure] | None = None
    active_units: Count = None
    dead_units: Count = None
    mutual_information_low: Figure = None
    mutual_information_high: Figure = None
    aggregate_kl_low: Figure = None
    aggregate_kl_high: Figure = None
    mse: Figure = None
    psnr: Figure = None
    ssim: Figure = None
    fid_reconstructions: Figure = None
    fid_samples: Figure = None
    fid_samples_gaussian: Figure = None
    fid_samples_mixture: Figure = None
    probe_accuracy: Figure = None


class Timing(Part):
    """Seconds of training steps, the first step apart; those of the test metrics."""

    train_seconds: Figure = None
    epoch_seconds: list[float] = []
    first_step_seconds: Figure = None
    images_per_second: Figure = None
    metrics_seconds: Figure = None


class Model(Part):
    """Size of the model; FLOPs of one forward pass of one image; the reference it was matched to, if to any."""

    parameters: Count = None
    encoder_parameters: Count = None
    decoder_parameters: Count = None
    flops_per_image: Count = None
    match: dict[str, Any] | None = None


class Memory(Part):
    """Highest memory of this run before its test metrics: of the process on a CPU, allocated on a GPU."""

    peak_bytes: Count = None


class Environment(Part):
    """What the figures were measured on."""

    python: str
    torch: str
    lightning: str
    device: str
    threads: int  # of each process
    processes: int = 1
    commit: str | None


class Result(Part):
    """What `result.json` holds."""

    version: Annotated[Literal[1], Field(alias="schema")] = 1
    status: Literal["finished", "failed"]
    error: str | None
    cell: str
    encoder: str
    decoder: str
    seed: int
    position: int | None = None  # in its sweep, from 1
    overrides: list[str]
    config_sha256: str
    warnings: list[str] = []  # what is wrong with the model, as `kind: sentence`
    metrics: dict[str, Any] | None = None  # which test metrics were asked for
    resumed: list[int] = []  # the epochs after which it was interrupted and gone on with
    train: Losses = Losses()
    val: Losses = Losses()
    test: Test = Test()
    timing: Timing = Timing()
    model: Model = Model()
    memory: Memory = Memory()
    wall_seconds: Figure = None  # of the whole attempt, from its start to this result
    environment: Environment
    files: dict[str, str] = {}  # the other files of the run → their SHA-256

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "finished"

    def measured(self) -> MetricsConfig | None:
        """Which test metrics were asked for; None where that is not known."""
        try:
            return None if self.metrics is None else MetricsConfig.model_validate(self.metrics)
        except ValidationError:
            return None


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`: the last file of a run."""
    write_text(folder / RESULT, result.model_dump_json(indent=2) + "\n")


def read_result(folder: Path) -> Result | None:
    """The result of a run; None if there is none, or none that parses."""
    try:
        return Result.model_validate_json((folder / RESULT).read_bytes())
    except (OSError, ValidationError):
        return None


def write_config(folder: Path, container: Mapping[str, Any]) -> None:
    """Write the resolved configuration."""
    write_text(folder / CONFIG, yaml.safe_dump(dict(container), sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run; None if there is none that parses."""
    try:
        loaded = load_plain((folder / CONFIG).read_bytes())
    except (OSError, ValueError, yaml.YAMLError):  # a date that does not exist is a ValueError
        return None
    return loaded if isinstance(loaded, dict) else None


def read_config_folders(folder: Path) -> list[str]:
    """The folders of a run's command line, `--config-dir`; empty where Hydra's own files are gone."""
    try:
        loaded = load_plain((folder / ".hydra" / "hydra.yaml").read_bytes())
        sources = loaded["hydra"]["runtime"]["config_sources"]
        return [str(source["path"]) for source in sources if source["provider"] == "command-line"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def write_history(folder: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write `history.csv`: a row an epoch and split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    write_text(folder / HISTORY, text.getvalue())


def read_history(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The epochs of a run: split → column → values; empty if there are none that parse."""
    try:
        with open(folder / HISTORY, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError):
        return {}
    if tuple(header) != COLUMNS:
        return {}
    history: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        try:
            epoch, split, *figures = row
            numbers = (int(epoch), *map(float, figures))
        except ValueError:
            return {}
        if len(row) != len(COLUMNS):
            return {}
        columns = history.setdefault(split, {name: [] for name in COLUMNS if name != "split"})
        for values, number in zip(columns.values(), numbers, strict=True):
            values.append(number)
    return history


def kl_of_epochs(history: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[int, float]:
    """Epoch → its KL divergence, in training or in validation, whichever is higher."""
    highest: dict[int, float] = {}
    for split in ("train", "val"):
        for epoch, kl in zip(*(history.get(split, {}).get(name, ()) for name in ("epoch", "kl")), strict=True):
            highest[int(epoch)] = max(kl, highest.get(int(epoch), kl))
    return highest


def read_pictures(folder: Path) -> dict[str, np.ndarray]:
    """Test images, their reconstructions and samples of the prior: name → (n, c, h, w), a byte a pixel.

    Empty if there are none that can be read.
    """
    try:
        with zipfile.ZipFile(folder / PICTURES):  # else NumPy may find an array in the file, or a pickle
            pass
        with np.load(folder / PICTURES, allow_pickle=False) as arrays:
            pictures = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}
    return {
        name: images
        for name, images in pictures.items()
        if images.ndim == 4 and images.dtype == np.uint8 and images.size > 0
    }


def clear(folder: Path, *, keep_checkpoints: bool = False) -> None:
    """Remove what an earlier attempt at a run left, so that no file of it passes for one of the next.

    Its checkpoints stay if the next attempt goes on from them.
    """
    ours = (RESULT, CONFIG, HISTORY, MODEL, WEIGHTS, TRACEBACK, EVENTS, PICTURES, *SHEETS, f"{PROJECTOR}*.pbtxt")
    for pattern in (*ours, ".*.partial*"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / PROJECTOR, ignore_errors=True)
    for file in (folder / CHECKPOINTS).glob(".*.partial*"):
        file.unlink()
    for made in (CSV_LOG, EXPORT):
        shutil.rmtree(folder / made, ignore_errors=True)
    if not keep_checkpoints:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
