"""Print to the terminal, and stop at a configuration error."""

from pathlib import Path
from typing import NoReturn

from rich.console import Console

from vae_lab.config.errors import ConfigError


def say(text: str, *, error: bool = False) -> None:
    """Print text unchanged, without line breaks, so that paths and commands can be copied. Ignore rich's markup."""
    Console(stderr=error).print(text, soft_wrap=True, highlight=False, markup=False)


def shown(path: Path) -> str:
    """A path, relative to the working directory if it lies inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def stop(error: ConfigError) -> NoReturn:
    """Print every problem of a configuration and end the process with exit code 1."""
    count = len(error.problems)
    head = f"Nothing was run: {'a problem' if count == 1 else f'{count} problems'} with the configuration."
    say("\n".join([head, *(f"  {problem}" for problem in error.problems)]), error=True)
    raise SystemExit(1)
