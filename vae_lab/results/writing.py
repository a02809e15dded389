"""Files that are whole or not there: what a crash, a kill or a full disk leaves is the old file or the new one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; what lies there at the end takes the place of `path`, on the disk too.

    Raises:
        OSError: if it cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")  # the suffix tells writers of pictures the format
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk its space is needed
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a disk that is full does not tell of which file
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk; not all systems let a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that whoever looks sees the old one or the new one, also after a crash."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def write_same(path: Path, source: Path) -> None:
    """Let `path` be the file that `source` is now: another name for it, or a copy where the disk knows no such names.

    As files are replaced and not changed, each stays as it is when the other is written anew.
    """
    if path.exists() and path.samefile(source):
        return
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
