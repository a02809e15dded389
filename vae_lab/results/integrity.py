"""Whether a run's files are those that it wrote: their checksums, which its result.json holds."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from vae_lab.results.files import CHECKPOINTS, HISTORY, MODEL, PICTURES, SHEETS, WEIGHTS, Result

SHOWN = (HISTORY, PICTURES)
"""What a report shows of a run beside its result."""

# config.yaml is judged by its content, result.json by its schema, and a logger may still write to its own files.
KNOWN = (*SHOWN, *SHEETS, MODEL, WEIGHTS, f"{CHECKPOINTS}/last.ckpt", f"{CHECKPOINTS}/best.ckpt")


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that a run has left, by its name in the run's folder."""
    return {name: _sha256(folder / name) for name in KNOWN if (folder / name).is_file()}


def damaged(folder: Path, result: Result, names: Iterable[str] = KNOWN) -> list[Path]:
    """The files of a run that are not as it wrote them; one that is missing is a hole, no damage."""
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
    """Checked before a sweep starts and again at each run's turn: read once as long as the file stays the same."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
