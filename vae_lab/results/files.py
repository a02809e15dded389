"""The files of a run: written atomically, checked when read."""

import csv
import io
import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from vae_lab.config import MetricsConfig
from vae_lab.results import figures
from vae_lab.results.plain import load_plain
from vae_lab.results.reading import read_arrays, read_bytes, read_json
from vae_lab.results.writing import replacing, write_text

if TYPE_CHECKING:
    import numpy as np

RESULT, CONFIG, HISTORY, TRACEBACK = "result.json", "config.yaml", "history.csv", "traceback.txt"
MODEL = "model.txt"
FINGERPRINT = "fingerprint.json"
CHECKPOINTS, WEIGHTS, EVENTS = "checkpoints", "model.safetensors", "events.out.tfevents.*"
CSV_LOG = "csv"  # the folder of conf/logger/csv.yaml
PROJECTOR = "projector"
EXPORT = "export"
PICTURES, SHEETS = "pictures.npz", ("reconstructions.png", "samples.png")
TEST_IMAGES = "test_images.npz"
"""Figures of each test image."""
BOUNDS = f"{CHECKPOINTS}/bounds.json"
"""Importance-weighted bounds of the test images so far, of an evaluation that was interrupted."""
NOT_WRITTEN = "not written: "
"""Beginning of a warning about a file of a finished run that could not be written."""
COLUMNS = ("epoch", "split", "total", "reconstruction", "kl", "seconds")
SPLITS = ("train", "val", "test")
MOST_VALUES = 2_000_000
"""Of `history.csv`: rows after so many values are not read."""
MOST_FIGURES = 1000
"""Of a split. A result with more is not read: a report of them would take minutes."""
LONGEST_NAME, LONGEST_TEXT = 500, 20_000
"""In letters; a result keeps so much of a longer text."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A figure that cannot be computed is null, never NaN: JSON has no NaN.
Figure = Annotated[float | None, BeforeValidator(_finite)]


Count = Annotated[int | None, BeforeValidator(_finite)]
Name = Annotated[str, AfterValidator(lambda text: text[:LONGEST_NAME])]
Text = Annotated[str, AfterValidator(lambda text: text[:LONGEST_TEXT])]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Part(BaseModel):
    """A part of a result; later versions add keys."""

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)


class Losses(Part):
    """Averages over the images of a split: the terms of the objective."""

    total: Figure = None
    reconstruction: Figure = None
    kl: Figure = None

    @model_validator(mode="after")
    def _check_further_terms(self) -> Self:
        """Undeclared keys are numbers too, or lists of numbers."""
        extra = self.__pydantic_extra__ or {}
        for name, value in extra.items():
            parts = value if isinstance(value, list) else [value]
            if not all(one is None or type(one) in (int, float) for one in parts):
                raise ValueError(f"{name} must be a number")
            extra[name] = [_finite(one) for one in parts] if isinstance(value, list) else _finite(value)
        return self


class Test(Losses):
    """The terms on the test images, and the test metrics: null if not requested or not computable.

    `results.figures` lists them. A metric that later versions or users add is read too.
    """

    @model_validator(mode="before")
    @classmethod
    def _has_every_figure(cls, given: Any) -> Any:
        return dict.fromkeys(figures.OF_TEST) | given if isinstance(given, dict) else given


class Timing(Part):
    """Seconds of the training steps, with the first step separate, and of the test metrics."""

    train_seconds: Figure = None
    epoch_seconds: list[Finite] = []
    first_step_seconds: Figure = None
    images_per_second: Figure = None
    cpu_share: Figure = None  # of the processors that its threads ask for, while it trained on them
    metrics_seconds: Figure = None


class Model(Part):
    """Size of the model; FLOPs of one forward pass of one image; the reference that it was matched to, if any."""

    parameters: Count = None
    encoder_parameters: Count = None
    decoder_parameters: Count = None
    posterior_parameters: Count = None  # of flows: what the encoder puts out is counted with the encoder
    prior_parameters: Count = None
    likelihood_parameters: Count = None
    flops_per_image: Count = None
    match: dict[str, Any] | None = None


class Memory(Part):
    """Peak memory of this run before its test metrics: of the process on a CPU, allocated memory on a GPU."""

    peak_bytes: Count = None


class Environment(Part):
    """The machine and software that the figures were measured with."""

    python: Name
    torch: Name
    lightning: Name
    device: Name
    threads: int  # of each process
    processes: int = 1
    commit: Name | None


OLD_TERMS = {
    "total": figures.SQUARED_ERROR,
    "reconstruction": figures.SQUARED_ERROR,
    "kl": figures.NATS_PER_DIMENSION,
}
"""The units of results of version 0.1, which do not contain them."""


class Result(Part):
    """The content of `result.json`."""

    version: Annotated[Literal[1], Field(alias="schema")] = 1
    status: Literal["finished", "failed"]
    error: Text | None
    cell: Name
    encoder: Name
    decoder: Name
    seed: int
    position: int | None = None  # in its sweep, from 1
    overrides: list[str]
    config_sha256: str
    warnings: list[Text] = []  # about problems of the model, as `kind: sentence`
    metrics: dict[str, Any] | None = None  # the requested test metrics
    terms: dict[str, str] = OLD_TERMS  # the objective's terms → their units
    nats: Literal["real", "levels", "binary"] | None = "real"  # the data that its likelihood is for; None without one
    divergence: Literal["exact", "estimated"] | None = "exact"  # how `kl` was computed
    tested_epoch: int | None = None  # whose weights were tested and kept; the last unless test_weights is best
    resumed: list[int] = []  # the epochs after which it was resumed
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
        """Whether the run finished."""
        return self.status == "finished"

    @property
    def has_its_files(self) -> bool:
        """Whether every file of the run could be written."""
        return not any(text.startswith(NOT_WRITTEN) for text in self.warnings)

    def measured(self) -> MetricsConfig | None:
        """The requested test metrics; None if they are not known."""
        try:
            return None if self.metrics is None else MetricsConfig.model_validate(self.metrics)
        except ValidationError:
            return None


_FINGERPRINT = TypeAdapter(dict[str, str])


def not_written(what: str, error: Exception) -> str:
    """The warning that a file could not be written, and how to get it."""
    reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    return f"{NOT_WRITTEN}{what} ({reason}); the same command again writes it from the last checkpoint"


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`: the last file of a run."""
    write_text(folder / RESULT, result.model_dump_json(indent=2) + "\n")


def read_result(folder: Path) -> Result | None:
    """The result of a run; None if there is none, or none that parses."""
    try:
        return check_result(read_json(folder / RESULT))
    except (OSError, ValueError):
        return None


def check_result(content: Any) -> Result:
    """The result in the content of a `result.json`.

    Raises:
        ValueError: if it is not one, or has too many figures.
    """
    result = Result.model_validate(content)
    if (
        max(len(result.terms), *(len(split.model_dump()) for split in (result.train, result.val, result.test)))
        > MOST_FIGURES
    ):
        raise ValueError(f"it has more than {MOST_FIGURES:,} figures")
    return result


def write_config(folder: Path, container: Mapping[str, Any]) -> None:
    """Write the resolved configuration."""
    write_text(folder / CONFIG, yaml.safe_dump(dict(container), sort_keys=False, allow_unicode=True))


def read_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run; None if there is none that parses."""
    try:
        loaded = load_plain(read_bytes(folder / CONFIG))
    except (OSError, ValueError, yaml.YAMLError):  # an impossible date is a ValueError
        return None
    return loaded if isinstance(loaded, dict) else None


def write_fingerprint(folder: Path, fingerprint: Mapping[str, str]) -> None:
    """Write the fingerprint of a run's images and of the user's code in it, when the run starts."""
    write_text(folder / FINGERPRINT, json.dumps(dict(fingerprint), indent=2) + "\n")


def read_fingerprint(folder: Path) -> dict[str, str]:
    """The fingerprint of a run; empty if there is none that parses, as in runs of earlier versions."""
    try:
        return _FINGERPRINT.validate_python(read_json(folder / FINGERPRINT))
    except (OSError, ValueError):
        return {}


def read_config_folders(folder: Path) -> list[str]:
    """The `--config-dir` folders of a run's command line; empty if Hydra's own files are missing."""
    try:
        loaded = load_plain(read_bytes(folder / ".hydra" / "hydra.yaml"))
        sources = loaded["hydra"]["runtime"]["config_sources"]
        return [str(source["path"]) for source in sources if source["provider"] == "command-line"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def write_history(folder: Path, rows: Sequence[tuple[int, str, float, Mapping[str, float]]]) -> None:
    """Write `history.csv`: a row for each epoch and split, from (epoch, split, seconds, terms)."""
    further = list(dict.fromkeys(term for *_, terms in rows for term in terms if term not in COLUMNS))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *further))
    for epoch, split, seconds, terms in rows:
        own = {"epoch": epoch, "split": split, "seconds": seconds} | dict(terms)
        writer.writerow(own.get(column, "") for column in (*COLUMNS, *further))
    write_text(folder / HISTORY, text.getvalue())


def read_history(folder: Path) -> dict[str, dict[str, list[float]]]:
    """The epochs of a run: split → column → values; empty if there are none that parse."""
    history: dict[str, dict[str, list[float]]] = {}
    try:
        rows = csv.reader(io.StringIO(read_bytes(folder / HISTORY).decode(), newline=""))
        header = next(rows, [])
        if tuple(header[: len(COLUMNS)]) != COLUMNS or len({*header}) < len(header):
            return {}
        for row in itertools.islice(rows, MOST_VALUES // len(header)):
            epoch, split, *figures = row
            if len(row) != len(header) or split not in SPLITS or not 0 <= int(epoch) < MOST_VALUES:
                return {}
            columns = history.setdefault(split, {name: [] for name in header if name != "split"})
            numbers = (int(epoch), *(float(figure or "nan") for figure in figures))
            for values, number in zip(columns.values(), numbers, strict=True):
                values.append(number)
    except (OSError, csv.Error, ValueError):
        return {}
    return history


def kl_of_epochs(history: Mapping[str, Mapping[str, Sequence[float]]], divisor: float = 1.0) -> dict[int, float]:
    """Epoch → its KL divergence over a divisor, in training or in validation, whichever is higher."""
    highest: dict[int, float] = {}
    for split in ("train", "val"):
        for epoch, kl in zip(*(history.get(split, {}).get(name, ()) for name in ("epoch", "kl")), strict=True):
            highest[int(epoch)] = max(kl / divisor, highest.get(int(epoch), kl / divisor))
    return highest


def read_pictures(folder: Path) -> "dict[str, np.ndarray]":
    """Test images, their reconstructions and samples of the prior: name → (n, c, h, w), one byte per pixel.

    Empty if there are none that can be read.
    """
    try:
        pictures = read_arrays(folder / PICTURES, "uint8")
    except Exception:  # zipfile and NumPy raise many kinds for a damaged file
        return {}
    return {name: images for name, images in pictures.items() if images.ndim == 4 and images.size > 0}


def write_test_images(folder: Path, images: "Mapping[str, np.ndarray]") -> None:
    """Write the figures of each test image: name of the figure → (n,)."""
    import numpy as np

    arrays: dict[str, Any] = dict(images)
    with replacing(folder / TEST_IMAGES) as path:
        np.savez(path, **arrays)


def read_test_images(folder: Path) -> "dict[str, np.ndarray]":
    """Name of a figure → its value for each test image, in 32 bits; empty if there are none that can be read."""
    try:
        images = read_arrays(folder / TEST_IMAGES, "float32")
    except Exception:  # as for pictures
        return {}
    return {name: values for name, values in images.items() if values.ndim == 1 and values.size > 0}


def clear(folder: Path, *, keep_checkpoints: bool = False) -> None:
    """Remove the files of an earlier attempt at a run, so that none is taken for a file of the next attempt.

    With `keep_checkpoints` its checkpoints and fingerprint stay, so that the next attempt can resume from them.
    """
    files = (RESULT, CONFIG, HISTORY, MODEL, WEIGHTS, TRACEBACK, EVENTS, PICTURES, TEST_IMAGES, *SHEETS)
    for pattern in (*files, f"{PROJECTOR}*.pbtxt", ".*.partial*"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / PROJECTOR, ignore_errors=True)
    for file in (folder / CHECKPOINTS).glob(".*.partial*"):
        file.unlink()
    for subfolder in (CSV_LOG, EXPORT):
        shutil.rmtree(folder / subfolder, ignore_errors=True)
    if not keep_checkpoints:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        (folder / FINGERPRINT).unlink(missing_ok=True)
