"""The record of a search: its space and its trials, in one file beside the runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from vae_lab.results.reading import read_json
from vae_lab.results.writing import write_text

SEARCH = "search.json"
MOST_KEYS = 1000
"""Largest number of searched keys, and of the choices of one."""
Sampler = Literal["tpe", "random", "gp"]
Value = int | float | str
"""The value of a key in a trial: a number, or a choice as typed."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="forbid")


class Choice(_Strict):
    """A key that takes one of several words."""

    choices: Annotated[list[str], Field(min_length=1, max_length=MOST_KEYS)]

    def holds(self, value: Value) -> bool:
        """Whether it is one of the words."""
        return value in self.choices

    def ends(self) -> list[Value]:
        """All words, since any one of them may be invalid."""
        return [*self.choices]


class Number(_Strict):
    """A key that takes a number from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    step: float | None = None
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high or (self.log and self.low <= 0) or (self.step is not None and self.step <= 0):
            raise ValueError("low must be at most high, and greater than 0 on a logarithmic scale")
        return self

    def holds(self, value: Value) -> bool:
        """Whether it is a number from `low` to `high`."""
        return isinstance(value, int if self.whole else int | float) and self.low <= value <= self.high

    def ends(self) -> list[Value]:
        """The lowest and the highest number."""
        return [*dict.fromkeys(int(end) if self.whole else end for end in (self.low, self.high))]


Parameter = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Number, Tag("number")],
    Discriminator(
        lambda value: (
            "choice" if isinstance(value, Choice) or (isinstance(value, dict) and "choices" in value) else "number"
        )
    ),
]
Space = Mapping[str, Choice | Number]
"""Maps each searched key, as on the command line with its `+`, to its possible values."""


class Trial(_Strict):
    """One set of values, and its result."""

    number: Annotated[int, Field(ge=0)]
    values: dict[str, Value]
    state: Literal["open", "finished", "failed"] = "open"
    loss: float | None = None
    """The value to minimise: the figure, or −1 times a figure to maximise."""
    run: str
    """Its run: `<cell>/seed-<n>`."""

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if (self.loss is None) == (self.state == "finished"):
            raise ValueError("a trial has a loss if it has finished, and none if not")
        return self


class Trials(_Strict):
    """A search: the settings that determine its values, and all trials so far."""

    version: Annotated[Literal[1], Field(alias="schema")] = 1
    metric: str
    sampler: str
    seed: int
    fixed: list[str]
    space: Annotated[dict[str, Parameter], Field(max_length=MOST_KEYS)]
    trials: list[Trial] = Field(default_factory=list)

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True, validate_by_name=True)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for index, trial in enumerate(self.trials):
            if trial.number != index:
                raise ValueError(f"trial {trial.number} stands in place {index}")
            if trial.values.keys() != self.space.keys():
                raise ValueError(f"trial {index} has other keys than the space")
            for key, value in trial.values.items():
                if not self.space[key].holds(value):
                    raise ValueError(f"{key} of trial {index} lies outside the space")
        return self

    @property
    def is_lower_better(self) -> bool:
        """Whether the search minimises its figure."""
        return self.metric != "val.elbo"

    @property
    def goal(self) -> str:
        """The direction of the search, in words."""
        return "lowest" if self.is_lower_better else "highest"

    def shown(self, trial: Trial) -> float:
        """The figure of a finished trial, for display."""
        assert trial.loss is not None
        return trial.loss if self.is_lower_better else -trial.loss

    @property
    def finished(self) -> list[Trial]:
        """The trials that have a loss, the lowest first."""
        return sorted((one for one in self.trials if one.loss is not None), key=lambda one: one.loss or 0.0)

    def plus(self, trials: Sequence[Trial]) -> Self:
        """This record with trials added; they replace trials of the same number."""
        known = {one.number: one for one in (*self.trials, *trials)}
        return self.model_copy(update={"trials": [known[number] for number in sorted(known)]})


class TrialsError(ValueError):
    """A record of a search that cannot be used."""


def bare(key: str) -> str:
    """A key without its `+` or `~` prefix."""
    return key.lstrip("+~")


def read_trials(folder: Path) -> Trials | None:
    """The search under `folder`; None where there is none.

    Raises:
        TrialsError: if the file is damaged or of another version.
        OSError: if it cannot be read.
    """
    path = folder / SEARCH
    try:
        return Trials.model_validate(read_json(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise TrialsError(f"{path} is no record of a search ({key + ': ' if key else ''}{first['msg']})") from None
    except ValueError as error:
        raise TrialsError(f"{path} is no record of a search ({error})") from None


def write_trials(folder: Path, trials: Trials) -> None:
    """Write the record atomically: a kill at any moment leaves the last one or this one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SEARCH, trials.model_dump_json(indent=1) + "\n")
