"""Published figures of the models that a configuration describes, which reports show beside ours."""

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Self

import yaml
from pydantic import BeforeValidator, Field

from vae_lab.config.base import Section
from vae_lab.config.names import config_folder

SAME_MODEL = ("trainer.threads", "trainer.accelerator", "trainer.devices", "trainer.strategy")
"""Keys that a user may change, and the model is still the published one; so is it with `trainer=gpu`."""
LARGEST = 1e150
"""Of a figure: the squares of larger ones overflow."""

Size = Annotated[float, Field(ge=0, le=LARGEST)]


def _as_typed(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


class PublishedFigure(Section):
    """One published figure.

    It is about the runs with the choices in `where`: group or key → its value as typed, such as `{prior: standard}`.
    """

    where: dict[str, Annotated[str, BeforeValidator(_as_typed)]] = Field(default_factory=dict)
    metric: str
    """Its name in `results.csv`, such as `test.iwae_5000`."""
    value: Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
    spread: Size | None = None
    """What is printed behind ±; None if nothing is."""
    tolerance: Size | None = None
    """The largest difference that still counts as the same figure."""
    note: str = ""
    """Why it is not to be compared; empty if it is."""

    def is_about(self, choices: Mapping[str, str], further: Mapping[str, str]) -> bool:
        """Whether it is about a run with these choices, and with further ones, which the figure must name."""
        named = all({**choices, **further}.get(key) == value for key, value in self.where.items())
        others = {*further} - {*self.where, *SAME_MODEL}
        return named and all(key == "trainer" and further[key] in ("default", "gpu") for key in others)


class Published(Section):
    """Published figures from one source."""

    source: str
    figures: Annotated[list[PublishedFigure], Field(max_length=1000)]

    def about(self, choices: Mapping[str, str], further: Mapping[str, str]) -> Self | None:
        """Those about a run; see `PublishedFigure.is_about`. None if there are none."""
        found = [one for one in self.figures if one.is_about(choices, further)]
        return self.model_copy(update={"figures": found}) if found else None


@functools.cache
def published_of_the_default_job() -> Published:
    """The figures of the grid from which vae_lab grew."""
    file = config_folder() / "published" / "seed.yaml"
    return Published.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
