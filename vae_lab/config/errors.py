"""Configuration errors and their messages."""

import difflib
import re
import traceback
from collections.abc import Iterable
from typing import NamedTuple

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

MOST_CHOICES = 20


class Problem(NamedTuple):
    """One thing wrong with a configuration: the key at fault and a sentence about it."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class ConfigError(ValueError):
    """All problems of a configuration, reported together."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def choices(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known words, after a suggestion of the one closest to `word`."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close and len(known) > MOST_CHOICES:
        return f"did you mean '{close[0]}'?"
    return (f"did you mean '{close[0]}'? " if close else "") + f"known: {', '.join(known)}"


def is_complaint(error: Exception) -> bool:
    """Whether an error is about what the user wrote: Hydra, OmegaConf or the YAML reader raised it."""
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError) or _undecodable_file(error):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]  # Hydra also raises plain ValueErrors
    last = frames[-20:] if isinstance(error, RecursionError) else frames[-1:]  # it may end in code that they call
    packages = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in last}
    return bool(packages & {"hydra", "omegaconf", "yaml", "antlr4"})


def _undecodable_file(error: Exception) -> str | None:
    """The file that is not valid text. Hydra passes on Python's error, which does not name the file."""
    if not isinstance(error, UnicodeDecodeError):
        return None
    paths = (frame.f_locals.get("full_path") for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((path for path in paths if isinstance(path, str)), None)


def explain(error: Exception) -> ConfigError:
    """Convert an error of Hydra, OmegaConf or the YAML reader to a `ConfigError`."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return ConfigError(Problem(group, f"there is no choice {choice!r}; {choices(choice, error.options)}"))
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        location = f"{mark.name}, line {mark.line + 1}"
        return ConfigError(Problem(location, f"this is not YAML: {error.problem}"))
    unreadable = _undecodable_file(error)
    if unreadable is not None:
        return ConfigError(Problem(unreadable, f"this is not YAML: it is not text in UTF-8 ({error})"))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            Problem(
                "command line",
                f"{error.override!r} is not of the form key=value ({error.message.splitlines()[0]})",
            )
        )
    if "maximum recursion depth" in str(error):
        return ConfigError(Problem("configuration", "lists are nested too deep to be read; nest fewer of them"))
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and OmegaConf.is_dict(cause.parent_node):
        word, key = str(cause.key), cause.full_key or str(cause.key)
        if word.startswith("_"):
            return ConfigError(Problem(key, f"is not in the file; add it with a plus: +{key}=…"))
        known = [str(key) for key in cause.parent_node if key != "hydra"]
        asked = re.search(r"use \+(\S+)", str(error))
        value = f" ({asked[1]})" if asked else ""
        return ConfigError(Problem(key, f"no such key{value}; {choices(word, known)}"))
    lines = [line for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        lines += str(cause).splitlines()[:1]
    return ConfigError(Problem(getattr(cause, "full_key", None) or "command line", " ".join(lines)))
