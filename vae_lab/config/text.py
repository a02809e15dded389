"""Text that may come from a stranger, in what is written: one function for each medium.

Names of runs and cells, values of overrides, errors, warnings, and names of hardware, classes and terms are such text.
HTML is escaped by jinja.
"""

import re

HIDDEN = "\N{REPLACEMENT CHARACTER}"
"""Stands for a character that is not shown."""
SPACES = "\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}"
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""A spreadsheet takes a cell that begins with one of these for a formula, and runs it."""


def visible(text: str, keep: str = "") -> str:
    """Text for a terminal, a figure or a page: each character that controls instead of being shown becomes �.

    These are control characters such as ESC, direction marks, characters without width and halves of characters.

    Args:
        text: any text.
        keep: characters to keep, such as a line break.
    """
    if text.isprintable():
        return text
    kept = keep + SPACES
    return "".join(one if one.isprintable() or one in kept else HIDDEN for one in text)


def one_line(text: str) -> str:
    """`visible` in one line: line breaks and tabs become spaces."""
    return text if text.isprintable() else visible(" ".join(text.split()))


def spreadsheet_cell(value: object) -> object:
    """A value of a CSV file: text that a spreadsheet would run begins with an apostrophe; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = visible(value, keep="\n")
    return f"'{text}" if text.lstrip().startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def markdown(text: str) -> str:
    """Text for a line or a table cell of a Markdown page: only `code` between single backticks is markup."""
    parts = re.split(r"(?<!`)(`[^`]+`)(?!`)", one_line(text))
    return "".join(part.replace("|", "¦") if index % 2 else _plain(part) for index, part in enumerate(parts))


def _plain(text: str) -> str:
    escaped = re.sub(r"[\\`*\[\]|]", r"\\\g<0>", text)
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def code(text: str) -> str:
    """Text as code in Markdown, also in a table."""
    return f"`{one_line(text).replace('`', 'ʹ').replace('|', '¦')}`"
