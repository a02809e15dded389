"""The files of a run: written atomically, judged when read."""

import csv
import io
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

RESULT, CONFIG, HISTORY, TRACEBACK = "result.json", "config.yaml", "history.csv", "traceback.txt"
MODEL = "model.txt"
CHECKPOINTS, WEIGHTS, EVENTS = "checkpoints", "model.safetensors", "events.out.tfevents.*"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# A figure that cannot be had is null, never NaN: JSON has no NaN.
Figure = Annotated[float | None, BeforeValidator(_finite)]


class Part(BaseModel):
    """A part of a result; later versions add keys."""

    model_config = ConfigDict(extra="allow", frozen=True, serialize_by_alias=True)


class Losses(Part):
    """Averages over the images of a split."""

    total: Figure = None
    reconstruction: Figure = None
    kl: Figure = None


class Timing(Part):
    """Seconds of training steps, the first step apart."""

    train_seconds: Figure = None
    epoch_seconds: list[float] = []
    first_step_seconds: Figure = None
    images_per_second: Figure = None


class Model(Part):
    """Size of the model; FLOPs of one forward pass of one image; the reference it was matched to, if to any."""

    parameters: int | None = None
    encoder_parameters: int | None = None
    decoder_parameters: int | None = None
    flops_per_image: int | None = None
    match: dict[str, Any] | None = None


class Memory(Part):
    """Highest memory of this run: of the process on a CPU, allocated on a GPU."""

    peak_bytes: int | None = None


class Environment(Part):
    """What the figures were measured on."""

    python: str
    torch: str
    lightning: str
    device: str
    threads: int
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
    overrides: list[str]
    config_sha256: str
    train: Losses = Losses()
    val: Losses = Losses()
    test: Losses = Losses()
    timing: Timing = Timing()
    model: Model = Model()
    memory: Memory = Memory()
    environment: Environment

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "finished"


def write_text(path: Path, text: str) -> None:
    """Write a file so that whoever looks sees the old one or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
        loaded = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return loaded if isinstance(loaded, dict) else None


def write_history(folder: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write `history.csv`: a row an epoch and split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("epoch", "split", "total", "reconstruction", "kl", "seconds"))
    writer.writerows(rows)
    write_text(folder / HISTORY, text.getvalue())


def clear(folder: Path) -> None:
    """Remove what an earlier attempt at a run left, so that no file of it passes for one of the next."""
    for pattern in (RESULT, CONFIG, HISTORY, MODEL, WEIGHTS, TRACEBACK, EVENTS, "reconstructions.png", ".*.partial*"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
