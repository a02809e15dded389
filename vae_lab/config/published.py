"""Published figures of the models that a configuration describes, which reports show beside ours."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from vae_lab.config.base import NonNegative, Positive, Section

SAME_MODEL = ("trainer.threads", "trainer.accelerator", "trainer.devices", "trainer.strategy")
"""Keys that a user may change, and the model is still the published one."""


class PublishedFigure(Section):
    """One published figure.

    It is about the runs with the choices in `where`: group or key → its value as typed, such as `{prior: standard}`.
    """

    where: dict[str, str] = Field(default_factory=dict)
    metric: str
    """Its name in `results.csv`, such as `test.iwae_5000`."""
    value: Annotated[float, Field(allow_inf_nan=False)]
    spread: NonNegative | None = None
    """What is printed behind ±; None if nothing is."""
    tolerance: Positive | None = None
    """The largest difference that still counts as the same figure."""
    note: str = ""
    """Why it is not to be compared; empty if it is."""

    def is_about(self, choices: Mapping[str, str]) -> bool:
        """Whether it is about a run with these choices, which include its encoder and decoder."""
        wanted = {key: choices.get(key) == value for key, value in self.where.items()}
        further = {*choices} - {*self.where} - {"encoder", "decoder", *SAME_MODEL}
        return all(wanted.values()) and not further


class Published(Section):
    """Published figures from one source."""

    source: str
    figures: list[PublishedFigure]

    def about(self, choices: Mapping[str, str]) -> Self | None:
        """Those about a run with these choices; None if there are none."""
        found = [one for one in self.figures if one.is_about(choices)]
        return self.model_copy(update={"figures": found}) if found else None
