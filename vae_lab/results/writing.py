"""Atomic writes: after a crash, a kill or on a full disk a file is the old one or the new one."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`. At the end that file replaces `path` and is synced to the disk.

    Raises:
        OSError: if it cannot be written; `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")  # image writers need the suffix
    temporary.unlink(missing_ok=True)  # left by a kill; a pipe or a link of that name must not be written to
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk its space is needed
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # the error of a full disk does not name the file
        if not isinstance(error, OSError) and os.strerror(errno.ENOSPC) in str(error):  # safetensors has its own error
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's list of names to the disk; not all systems can open a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: readers see the old one or the new one, also after a crash."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, in UTF-8."""
    write_bytes(path, text.encode())


def write_same(path: Path, source: Path) -> None:
    """Make `path` the same file as `source`: a hard link, or a copy where the disk has no hard links.

    Files are replaced and never modified, so each stays unchanged when the other is written again.
    """
    if path.exists() and path.samefile(source):
        return
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
