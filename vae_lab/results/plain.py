"""Read untrusted YAML safely."""

import re
from typing import Any

import yaml

DEEPEST = 100
"""The most levels of nesting; at about ten thousand PyYAML's reader in C crashes the process."""
LONGEST_NUMBER = 100
"""In characters, so that every number fits a float. Python needs a minute for a number that fills a file."""
MOST_NODES = 100_000
"""Of values and containers; PyYAML builds about 100,000 per second."""
# PyYAML's reader in C is ten times as fast; it is not built everywhere.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class PlainError(ValueError):
    """YAML that expands to more than its text; the message has the line."""


def load_plain(content: bytes) -> Any:
    """Load a YAML file: plain values and containers, with limited nesting and without aliases.

    Raises:
        PlainError: if a few bytes stand for a tree of any size or depth, or for a number of any length.
        yaml.YAMLError: if it is not YAML, or has a tag that is not YAML's own.
        ValueError: for a date or a number that does not exist.
    """
    _check(content)
    return yaml.load(content, LOADER)


def _check(content: bytes) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(content, LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise PlainError(f"line {line} refers to another place, by *{event.anchor}; write out what stands there")
        if count > MOST_NODES:
            raise PlainError(f"line {line} has the {MOST_NODES:,}th value; no configuration has so many")
        if depth > DEEPEST:
            raise PlainError(f"line {line} is nested more than {DEEPEST} deep")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_NUMBER and _is_number(event.value):
            raise PlainError(f"line {line} has a number of more than {LONGEST_NUMBER:,} letters")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.][\da-fA-FxX_:.]*", text) is not None
