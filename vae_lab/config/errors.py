"""Configuration errors and their messages."""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

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
