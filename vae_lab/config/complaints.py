"""Errors of Hydra, OmegaConf and the YAML reader in our own words."""

import difflib
import re
import traceback

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vae_lab.config import keys
from vae_lab.config.errors import ConfigError, Problem, choices
from vae_lab.config.schema import flatten


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
        return ConfigError(Problem("command line", _not_an_override(error)))
    several = re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?: requires|\n|$)", str(error))
    if several:
        key, _, values = several[1].partition("=")
        return ConfigError(Problem(key, f"has several values, {values}; add -m for a run of each: -m {several[1]}"))
    if "maximum recursion depth" in str(error):
        return ConfigError(Problem("configuration", "lists are nested too deep to be read; nest fewer of them"))
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and OmegaConf.is_dict(cause.parent_node):
        return ConfigError(_unknown_key(cause, str(error)))
    lines = [line for line in str(error).splitlines() if line.strip() and "hydra.cc" not in line]
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        lines += str(cause).splitlines()[:1]
    return ConfigError(Problem(getattr(cause, "full_key", None) or "command line", " ".join(lines)))


def _not_an_override(error: OverrideParseException) -> str:
    sentence = f"{error.override!r} is not of the form key=value ({error.message.splitlines()[0]})"
    key, equals, value = str(error.override).partition("=")
    if equals and value and not set(value) & set("'\"") and set(value) & set("()[]{}:=,#&!;<>^`~ "):
        return f"{sentence}; a text with special characters is quoted twice: \"{key}='{value}'\""
    return sentence


def _unknown_key(cause: ConfigAttributeError | ConfigKeyError, message: str) -> Problem:
    """A key that the composed configuration does not have."""
    word, key = str(cause.key), cause.full_key or str(cause.key)
    node = cause.parent_node
    assert isinstance(node, DictConfig)
    known = [str(one) for one in node if one != "hydra"]
    asked = re.search(r"use \+(\S+)", message)
    typed, _, value = (asked[1] if asked else f"{key}=").partition("=")
    if word.startswith("_") or typed in keys.to_add():
        return Problem(key, f"is not in the file; add it with a plus: +{typed}={value or '…'}")
    shown = f" ({asked[1]})" if asked else ""
    is_root = "." not in key and "[" not in key
    present = flatten(OmegaConf.to_container(node, resolve=False)) if is_root else None
    if not is_root and difflib.get_close_matches(word, known, n=1):
        return Problem(key, f"no such key{shown}; {choices(word, known)}")
    meant = keys.meant(typed, value, present)
    section = difflib.get_close_matches(word, known, n=1, cutoff=0.8)
    if meant and not section:
        return Problem(key, f"no such key{shown}; did you mean {' or '.join(meant)}?")
    return Problem(key, f"no such key{shown}; {choices(word, known)}")
