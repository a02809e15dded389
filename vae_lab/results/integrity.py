"""Check a run's files against the checksums in its result.json."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from vae_lab.results.files import CHECKPOINTS, HISTORY, MODEL, PICTURES, SHEETS, TEST_IMAGES, WEIGHTS, Result
from vae_lab.results.reading import opened

SHOWN = (HISTORY, PICTURES, TEST_IMAGES)
"""The files of a run that a report shows, apart from its result."""

# config.yaml is checked by its content, result.json by its schema, and a logger may still write to its own files.
KNOWN = (*SHOWN, *SHEETS, MODEL, WEIGHTS, f"{CHECKPOINTS}/last.ckpt", f"{CHECKPOINTS}/best.ckpt")


def checksums(folder: Path, names: Iterable[str] = KNOWN) -> dict[str, str]:
    """The SHA-256 of each file that a run wrote, or of these, by its name in the run's folder."""
    return {name: _sha256(folder / name) for name in names if (folder / name).is_file()}


def damaged(folder: Path, result: Result, names: Iterable[str] = KNOWN) -> list[Path]:
    """The files of a run that changed after it wrote them; a missing file does not count as damaged."""
    found = []
    for name in names:
        path = folder / name
        try:
            if name in result.files and _sha256(path) != result.files[name]:
                found.append(path)
        except FileNotFoundError:
            continue
        except OSError:
            found.append(path)
    return found


def _sha256(path: Path) -> str:
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns, status.st_ino)


@functools.cache
def _sha256_of(path: Path, *version: int) -> str:
    """Cached: files are checked before a sweep starts and again before each run. An unchanged file is read once."""
    return sha256(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file of a run.

    Raises:
        OSError: if it is missing or must not be read, see `reading.opened`.
    """
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
