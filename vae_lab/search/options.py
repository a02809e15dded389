"""The options of a search in `hydra.sweeper`."""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vae_lab.config import ConfigError, Problem, choices
from vae_lab.results.trials import Sampler

Metric = Annotated[str, Field(pattern=r"^val\.\w+$")]


class Options(BaseModel):
    """The number of trials, how many run at once, the sampler, and the figure that it uses."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    n_trials: Annotated[int, Field(ge=1, le=100_000)]
    n_jobs: Annotated[int, Field(ge=1, le=10_000)]
    sampler: Sampler
    metric: Metric
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]


def options(sweeper: Mapping[str, Any]) -> Options:
    """The options, checked.

    Raises:
        ConfigError: with all their problems.
    """
    given = {key: value for key, value in sweeper.items() if key not in ("_target_", "params")}
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        raise ConfigError(*(_problem(one) for one in error.errors())) from None


def _problem(error: Any) -> Problem:
    name, kind, value, context = str(error["loc"][0]), error["type"], error["input"], error.get("ctx", {})
    key = f"hydra.sweeper.{name}"
    if kind == "extra_forbidden":
        return Problem(key, f"no such key; {choices(name, [*Options.model_fields, 'params'])}")
    if kind == "missing":
        return Problem(key, "is missing")
    if kind == "literal_error":
        known = context["expected"]
        close = difflib.get_close_matches(str(value), re.findall("'(.*?)'", known), n=1)
        return Problem(key, f"must be {known}, but is {value!r}" + (f"; did you mean '{close[0]}'?" if close else ""))
    if kind == "string_pattern_mismatch":
        known = "val.total, val.elbo, or val. and another term of the objective"
        return Problem(key, f"must be a figure of the validation images, {known}, but is {value!r}")
    if kind == "int_type":
        return Problem(key, f"must be a whole number, but is {value!r}")
    limit = f"at least {context['ge']}" if "ge" in context else f"at most {context.get('le')}"
    return Problem(key, f"must be {limit}, but is {value!r}")
