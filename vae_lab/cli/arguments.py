"""Arguments and error handling that the commands for trained models share."""

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from vae_lab.config import ConfigError
from vae_lab.config.terminal import say, stop


def parser_of(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"vae-lab {command}",
        description=f"{description} The folder may come from somebody else: no code of its is run.",
        epilog=epilog.format(command=f"vae-lab {command}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def existing(text: str) -> Path:
    """A folder as typed; ends the process where there is none, but one that may be meant."""
    path = Path(text)
    if path.exists():
        return path
    meant = [Path("outputs", path)] if Path("outputs", path).is_dir() and not path.is_absolute() else []
    if not meant and path.parent.is_dir():
        close = difflib.get_close_matches(path.name, [one.name for one in path.parent.iterdir() if one.is_dir()], n=1)
        meant = [path.parent / name for name in close]
    if meant:
        refuse("Nothing was read", f"there is no folder {text}; did you mean {meant[0]}?")
    return path


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a model, its device and its data."""
    parser.add_argument("run", type=existing, metavar="RUN", help="a run's folder, or a sweep's with --best")
    parser.add_argument("--best", metavar="METRIC", help="of a sweep the run where this is best, such as val.total")
    parser.add_argument("--device", default="cpu", help="where the model computes: cpu, cuda, mps (default: cpu)")
    parser.add_argument("--data-root", metavar="FOLDER", help="the data set's files, if not where they were")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NAME", help="a package of yours that a model is made of"
    )


@contextmanager
def refusing(head: str) -> Iterator[None]:
    """End the process with exit code 1 and a one-line message at an error that a user can cause."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for the packages that are allowed
    try:
        yield
    except ConfigError as error:
        stop(error)
    except ValueError as error:  # LoadError, DataError and their kin
        refuse(head, str(error))
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        refuse(head, f"{path}{error.strerror or error}")


def refuse(head: str, reason: str) -> NoReturn:
    say(f"{head}: {reason}", error=True)
    raise SystemExit(1)
