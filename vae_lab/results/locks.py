"""Locks on the folders of runs, and the processes that hold them."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from vae_lab.config.text import visible
from vae_lab.results.reading import read_json
from vae_lab.results.writing import write_text

LOCK, OWNER = ".lock", ".owner.json"
PATIENCE = 0.5
"""Seconds to wait before a lock counts as held: a process that only checks a lock holds it for a moment."""
LONGEST_TURN = 600


class Owner(NamedTuple):
    """The process that works in a folder."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}" if self.host else "another process"


@contextmanager
def locked(folder: Path) -> Iterator[Owner | None]:
    """Lock a folder, which is created if it is missing; yields None, or the process that already holds the lock.

    The lock is the operating system's (flock): it is released when its process dies.

    Raises:
        OSError: if the folder cannot be created or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=PATIENCE)
    try:
        lock.acquire(poll_interval=PATIENCE / 10)
    except Timeout:
        yield _owner(folder)
        return
    try:
        write_text(folder / OWNER, json.dumps(_this_process()._asdict()) + "\n")
        yield None
    finally:
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Lock a folder, after waiting for other processes.

    Raises:
        OSError: if the folder cannot be created or written to, or is not released for ten minutes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK, timeout=LONGEST_TURN):
        yield


def holder(folder: Path) -> Owner | None:
    """The process that holds a folder's lock; None if it is free, or if that cannot be checked."""
    if not (folder / LOCK).exists():
        return None
    try:
        with FileLock(folder / LOCK, timeout=0):
            return None
    except Timeout:
        return _owner(folder)
    except OSError:  # another user's folder
        return None


def was_left(folder: Path) -> bool:
    """Whether a process that worked in a folder has ended without releasing it, as after a kill."""
    return (folder / OWNER).exists() and holder(folder) is None


def _this_process() -> Owner:
    return Owner(os.getpid(), socket.gethostname(), datetime.now().astimezone().isoformat(" ", "seconds"))


def _owner(folder: Path) -> Owner:
    try:
        found = read_json(folder / OWNER)
        return Owner(int(found["pid"]), visible(str(found["host"])[:100]), visible(str(found["since"])[:100]))
    except (OSError, ValueError, KeyError, TypeError):  # the file is not written yet, or already removed
        return Owner(0, "", "")
