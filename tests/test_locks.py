"""One process at a time in a folder."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vae_lab import results

HOLD = """
import sys, time
from pathlib import Path
from vae_lab import results
with results.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_owner_of_a_lock_is_reported_and_a_dead_process_owns_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = f"process {other.pid} on {os.uname().nodename} since 20"
        assert str(results.holder(tmp_path / "run")).startswith(told)
        with results.locked(tmp_path / "run") as owner:
            assert str(owner).startswith(told)
        other.send_signal(signal.SIGKILL)
    assert results.holder(tmp_path / "run") is None
    with results.locked(tmp_path / "run") as owner:
        assert owner is None
        assert results.holder(tmp_path / "run") == results.Owner(
            os.getpid(), os.uname().nodename, str(results.holder(tmp_path / "run")).partition("since ")[2]
        )
    assert results.holder(tmp_path / "run") is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("said", ["", "{", "[]", '{"pid": "x"}'])
def test_a_lock_whose_owner_is_not_recorded_still_counts(tmp_path: Path, said: str) -> None:
    with results.locked(tmp_path):
        (tmp_path / ".owner.json").write_text(said)
        assert str(results.holder(tmp_path)) == "another process"


def test_looking_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            results.holder(tmp_path)
            time.sleep(0.001)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with results.locked(tmp_path) as owner:
                assert owner is None
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_a_folder_without_a_lock_is_free(tmp_path: Path) -> None:
    assert results.holder(tmp_path / "nowhere") is None
    assert results.holder(tmp_path) is None
