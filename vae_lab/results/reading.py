"""Read the files of a run, which may be damaged or come from a stranger.

Every file of a run is opened here: it must be a regular file, is opened without blocking, and has a largest size. What
it contains is limited before it takes memory: nesting, digits, and the sizes that an archive or an array declares.
"""

import errno
import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json

if TYPE_CHECKING:
    import numpy as np

MEBI = 2**20
LARGEST = {
    "result.json": 16 * MEBI,
    "config.yaml": MEBI,
    "fingerprint.json": MEBI,
    "hydra.yaml": MEBI,
    "history.csv": 32 * MEBI,
    "pictures.npz": 128 * MEBI,
    "test_images.npz": 128 * MEBI,
    "search.json": 64 * MEBI,
    "bounds.json": 64 * MEBI,
    ".owner.json": MEBI,
}
"""Size limits in bytes: vae_lab writes no larger files, and reads none."""
LARGEST_OTHER = 64 * 1024 * MEBI
"""Of weights and checkpoints. Their tensors take no more memory than their files."""
HYDRAS = ".hydra"
IN_PLACE = (".log", ".yaml")
"""The ends of the names of files that are written in place, by Hydra and the loggers."""
LARGEST_INDEX = 8 * MEBI
"""Of the list of files in an archive: about 80,000 files."""
LARGEST_WHOLE = 2**63 - 1
"""NumPy and pandas hold no larger whole numbers."""


class UnreadableError(OSError):
    """A file that must not be read, with its path and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file of a run for reading. Links are followed: model hubs use them.

    Raises:
        UnreadableError: if it is a pipe, a device, a folder or a socket, or larger than files of its name can be.
        OSError: if it is missing or cannot be opened.
    """
    # Opening a pipe would wait for a program that writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _check(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        yield file


def check_file(path: Path) -> None:
    """Check a file that a library opens by its path.

    Raises:
        UnreadableError: as `opened`.
        OSError: as `opened`.
    """
    _check(path, os.stat(path))


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError(path, f"is {kind(status.st_mode)}, not a file")
    if status.st_size > _largest(path):
        raise UnreadableError(path, f"is larger than any {path.name} that vae_lab writes")


def _largest(path: Path) -> int:
    return LARGEST.get(path.name, LARGEST_OTHER)


def check_entries(folder: Path) -> None:
    """Check a folder before a run is written into it by Hydra and the loggers.

    A program that opens a pipe or a device waits, and one that opens a link writes to where it leads.

    Raises:
        UnreadableError: with an entry that is a pipe, a device or a socket, or a link to a file written in place.
        OSError: if the folder cannot be read.
    """
    inner = folder / HYDRAS
    if inner.is_symlink():
        raise UnreadableError(inner, "is a link, not a folder")
    for place in (folder, inner):
        try:
            entries = os.scandir(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                in_place = place == inner or entry.name.endswith(IN_PLACE)
                if entry.is_symlink() and in_place:
                    raise UnreadableError(Path(entry), "is a link, not a file")
                if not (entry.is_file() or entry.is_dir() or entry.is_symlink()):
                    raise UnreadableError(
                        Path(entry), f"is {kind(entry.stat(follow_symlinks=False).st_mode)}, not a file"
                    )


def kind(mode: int) -> str:
    """The kind of a file in words, from its `st_mode`."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UnreadableError: as `opened`.
        OSError: as `opened`.
    """
    with opened(path) as file:
        return file.read(_largest(path))  # some files of the system have no size and no end


def read_json(path: Path) -> Any:
    """The content of a JSON file: nested at most 200 deep, with whole numbers of at most 64 bits.

    Raises:
        ValueError: if it is not such a file.
        OSError: as `opened`.
    """
    tree = from_json(read_bytes(path))
    rest = [tree]
    while rest:
        one = rest.pop()
        if isinstance(one, dict | list):
            rest.extend(one.values() if isinstance(one, dict) else one)
        elif isinstance(one, int) and abs(one) > LARGEST_WHOLE:
            raise ValueError(f"{str(one)[:20]}… has too many digits")
    return tree


@contextmanager
def archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP file, which may expand to the size limit of its name; one without a limit may not expand.

    Raises:
        zipfile.BadZipFile: if it is damaged, or its files would be larger.
        Exception: `zipfile` raises many kinds for a damaged file.
        OSError: as `opened`.
    """
    with opened(path) as file:
        most = LARGEST.get(path.name, os.fstat(file.fileno()).st_size)
        with zipfile.ZipFile(cast("io.BufferedReader", _Reader(file))) as found:
            if sum(one.file_size for one in found.infolist()) > most:
                raise zipfile.BadZipFile("its contents are too large")
            yield found


class _Reader:
    """A file for `zipfile`, which reads the list of an archive's files at once, whatever its length."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_INDEX:
            raise zipfile.BadZipFile("its list of files is too long")
        return self._file.read(size)


def read_arrays(path: Path, kind: str) -> "dict[str, np.ndarray]":
    """The arrays of an `.npz` file, which must be of this type; none is larger than the file says it is.

    Raises:
        ValueError: if an array is of another type, or of another size than its header says.
        Exception: as `archive`; NumPy raises many kinds for a damaged header.
    """
    import numpy as np  # takes a third of the time that reporting a configuration error takes

    arrays = {}
    with archive(path) as found:
        for name in found.namelist():
            with found.open(name) as member:
                version = np.lib.format.read_magic(member)
                if version != (1, 0):
                    raise ValueError(f"{name} has version {version}")
                shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
                if dtype != np.dtype(kind):
                    raise ValueError(f"{name} has type {dtype}")
                content = member.read()
            if len(content) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has {len(content)} bytes, not the shape {shape}")
            values = np.frombuffer(bytearray(content), dtype)  # writable, as torch wants arrays
            arrays[name.removesuffix(".npy")] = values.reshape(shape, order="F" if is_fortran else "C")
    return arrays
