"""Print to the terminal, and stop at a configuration error."""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from rich.console import Console

from vae_lab.config.errors import ConfigError
from vae_lab.config.runs import Inherited
from vae_lab.config.text import visible

PATIENCE = 15.0
"""Seconds after which a long check says where it is, if there is no terminal to show a bar."""

Item = TypeVar("Item")


def say(text: str, *, error: bool = False) -> None:
    """Print text without line breaks of its own, so that paths and commands can be copied. It may hold others' text."""
    Console(stderr=error).print(visible(text, keep="\n\t"), soft_wrap=True, highlight=False, markup=False)


class LogFormatter(logging.Formatter):
    """The lines of a log, which may hold others' text too."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return visible(super().format(record), keep="\n\t")


def shown(path: Path) -> str:
    """A path, relative to the working directory if it lies inside it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def train_command() -> str:
    """The command for training, as the user calls this program: `vae-lab train` or `python train.py`."""
    program = Path(sys.argv[0])
    if program.stem == "vae-lab":
        return "vae-lab train"
    return f"python {sys.argv[0]}" if program.name == "train.py" else "python train.py"


def stop(error: ConfigError) -> NoReturn:
    """Print every problem of a configuration and end the process with exit code 1."""
    count = len(error.problems)
    head = f"Nothing was run: {'a problem' if count == 1 else f'{count} problems'} with the configuration."
    say("\n".join([head, *(f"  {problem}" for problem in error.problems)]), error=True)
    raise SystemExit(1)


def watched(items: Iterable[Item], count: int | None, doing: str) -> Iterator[Item]:
    """Pass items on, and show on stderr what is being done: by a bar on a terminal, elsewhere only if it takes long."""
    from rich.progress import Progress  # takes 20 ms, which other commands can do without

    console = Console(file=sys.stderr)
    has_bar = console.is_terminal and not Inherited.here.is_worker  # several bars would collide
    next_line = time.monotonic() + PATIENCE
    with Progress(console=console, transient=True, disable=not has_bar) as bar:
        for done, item in enumerate(bar.track(items, count, description=doing), 1):
            yield item
            if not has_bar and time.monotonic() > next_line:
                say(f"{doing}: {done:,}{'' if count is None else f' of {count:,}'} done", error=True)
                next_line = time.monotonic() + 4 * PATIENCE


# --- Streams -----------------------------------------------------------------------------------------------


class _Lossy(io.FileIO):
    """A file that loses what cannot be written: a full disk or a closed pipe must not end a training."""

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.failure = error
            return memoryview(content).nbytes


def protect_streams() -> None:
    """Let no printing of this process fail, by `print`, rich or logging.

    A character that the terminal's encoding lacks becomes a question mark. A closed stream becomes the null device,
    else the next opened file would get its number, and what other programs print would end up in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
            file = _file(stream)
            if type(file) is io.FileIO and stream is getattr(sys, f"__{name}__"):
                setattr(sys, name, _lossy(stream, file.fileno()))


def _file(stream: TextIO) -> Any:
    """The file below a stream; a stream of `python -u` has no buffer between."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _lossy(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    with suppress(OSError):
        stream.flush()
    file = _Lossy(number, "w", closefd=False)
    is_buffered = isinstance(stream.buffer, io.BufferedWriter)
    return io.TextIOWrapper(
        io.BufferedWriter(file) if is_buffered else file,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


@contextmanager
def printing() -> Iterator[None]:
    """Protect the streams of a command. If output is lost, say so at its end, with exit code 1.

    That the reader of a pipe has read enough is no failure.
    """
    protect_streams()
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
    lost = _loss()
    if lost is not None:
        say(f"A part of the output could not be printed ({lost.strerror}); all files were written.", error=True)
        raise SystemExit(1)


def _loss() -> OSError | None:
    """Why something that was printed to stdout is lost."""
    sys.stdout.flush()
    file = _file(sys.stdout)
    failure = file.failure if isinstance(file, _Lossy) else None
    return None if failure is None or failure.errno == errno.EPIPE else failure
