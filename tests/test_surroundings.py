"""Odd surroundings: full or closed streams, strange variables, signals, too little memory, a folder that is gone."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import Command
from runs import write_run
from torch.utils.data import Dataset

from vae_lab import results
from vae_lab.config import ConfigError, Inherited
from vae_lab.data import batches
from vae_lab.sweep import checks, launchers
from vae_lab.training import runner
from vae_lab.training.processes import exit_text

ROOT = Path(__file__).parents[1]
SMALL = (
    "encoder=mlp", "decoder=mlp", "latent.dim=2", "data.num_train=32", "data.num_val=8", "data.num_test=8",
    "trainer.max_epochs=1", "trainer.threads=1", "metrics.frechet=false", "callbacks=quiet", "logger={}",
)  # fmt: skip


# --- Streams -----------------------------------------------------------------------------------------------


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def not_for_writing() -> int:
    return os.open(os.devnull, os.O_RDONLY)


STREAMS = [
    pytest.param(full, 1, marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")),
    (without_reader, 0),
    (not_for_writing, 1),
]


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], int]], None]]:
    """Give this process another stdout, by its descriptor, as Python does when it starts."""

    streams = []

    def give(opened: Callable[[], int]) -> None:
        stream = open(opened(), "w")  # noqa: SIM115
        streams.append(stream)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)

    yield give
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(("opened", "code"), STREAMS)
def test_a_sweep_keeps_runs_and_report_when_nothing_can_be_printed(
    stdout: Callable[[Callable[[], int]], None],
    command: Command,
    tmp_path: Path,
    opened: Callable[[], int],
    code: int,
) -> None:
    stdout(opened)
    done = command("train", "-m", *SMALL, "name=x")
    errors = done.stderr
    assert done.returncode == code, errors
    assert len(list(tmp_path.glob("outputs/x/*/*/result.json"))) == 1
    assert (tmp_path / "outputs/x/report/report.html").is_file()
    assert "Traceback" not in errors
    assert "--- Logging error ---" not in errors
    assert ("A part of the output could not be printed" in errors) == bool(code)


@pytest.mark.parametrize(
    ("redirected", "code"), [(">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("| head -n 1", 0), (">/dev/full", 1)]
)
def test_closed_and_full_streams_give_no_traceback(redirected: str, code: int) -> None:
    call = "from vae_lab.cli import main; main()"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" --help {redirected}', sys.executable, call],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os; from vae_lab.config.terminal import protect_streams; protect_streams(); "
        "file = open('kept', 'w'); os.system('echo printed'); file.write('mine')"
    )
    subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path, check=True)
    assert (tmp_path / "kept").read_text() == "mine"


# --- Variables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "nonsense", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "ascii"},
        {
            "MPLBACKEND": "module://nowhere",
            "HOME": "/dev/null/nowhere",
            "TMPDIR": "/nowhere",
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
    ],
    ids=" ".join,
)
def test_a_report_is_written_whatever_the_environment_says(tmp_path: Path, variables: dict[str, str]) -> None:
    write_run(tmp_path / "outputs/x")
    done = subprocess.run(
        [sys.executable, "-c", "from vae_lab.cli import main; main()", "report", "outputs/x"],
        cwd=tmp_path, env=os.environ | variables, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert [*tmp_path.glob("outputs/x/report/*.png")]


# --- Processes and memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-7, "was killed by SIGBUS (as where /dev/shm or a disk is full)"),
        (-9, "was killed by SIGKILL (as by a system that is short of memory, or by the scheduler of a cluster)"),
        (-15, "was killed by SIGTERM"),
        (-99, "was killed by signal 99"),
        (3, "ended with exit code 3"),
    ],
)
def test_the_end_of_a_process_is_explained(code: int, text: str) -> None:
    assert exit_text(code) == text


def test_joblibs_error_about_a_worker_is_one_sentence() -> None:
    error = RuntimeError("A worker process was …\n\nThe exit codes of the workers are {SIGBUS(-7)}\nDetailed …")
    assert launchers.failure(error) == "a process was killed by SIGBUS (as where /dev/shm or a disk is full)"
    assert launchers.failure(RuntimeError("no cluster.\nmore")) == "RuntimeError: no cluster"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "there is too little memory ("),
        (OSError("libtorch.so: cannot allocate memory"), "there is too little memory ("),
        (MemoryError(), "there is too little memory (MemoryError)"),
        (OSError("x.so: failed to map segment: Operation not permitted"), "permits no programs"),
        (ImportError("libGL.so.1: cannot open shared object file: No such file"), "a library of the system is missing"),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "the package yaml is not installed"),
        (ImportError("numpy.core failed to import"), "a library does not load (numpy.core failed to import)"),
    ],
)
def test_why_a_library_does_not_load_is_said(error: Exception, text: str) -> None:
    assert text in checks.import_problem(error)
    assert "do not load together" not in checks.import_problem(error)


def test_torch_and_torchvision_that_differ_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ConfigError, match=r"do not load together \(operator torchvision::nms does not exist\)"):
        checks.check_import("torchvision")


# --- Shared memory -----------------------------------------------------------------------------------------


class Items(Dataset):
    """Seven images, each of one grey level."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 2, 2), number, dtype=torch.uint8), number % 2


@pytest.mark.parametrize(("free", "shares"), [(0, False), (64 * 2**20, False), (2**40, True)])
def test_workers_use_shared_memory_only_where_there_is_enough(
    monkeypatch: pytest.MonkeyPatch, free: int, shares: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    streamed = batches.Streamed(Items(), 3, seed=None, workers=1, labelled=True)
    whole = [*streamed]
    sent = [one for batch in streamed.loader for one in batch]
    assert all(isinstance(one, torch.Tensor) == shares for one in sent)
    assert torch.equal(torch.cat([labels for _, labels in whole]), torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    images = torch.cat([images for images, _ in whole])
    assert (images.shape, images.dtype) == ((7, 1, 2, 2), torch.float32)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(7) / 255)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("Caught X.\nOriginal Traceback (most recent call last):\n  a\nRuntimeError: unable to allocate "
                      "shared memory(shm)"), "RuntimeError: unable to allocate shared memory(shm) (in a process that"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error. "), "Bus error.; /dev/shm is too"),
        (ValueError(""), "ValueError: no message"),
    ],
)  # fmt: skip
def test_an_error_of_a_process_that_reads_data_is_one_line(error: Exception, text: str) -> None:
    assert text in runner._error_text(error)
    assert "\n" not in runner._error_text(error)


def test_processes_of_joblib_start_others_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "loky")
    monkeypatch.setattr("multiprocessing.set_start_method", lambda name, force: chosen.append(name))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(Inherited, "here", Inherited())
    launchers.Surroundings().restore()
    assert chosen == multiprocessing.get_all_start_methods()[:1]


# --- Folders and disks -----------------------------------------------------------------------------------------------


def test_a_library_that_finds_the_disk_full_ends_in_an_error_of_the_system(tmp_path: Path) -> None:
    def write() -> None:
        with results.replacing(tmp_path / "x") as path:
            path.write_bytes(b"part")
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write()
    assert caught.value.filename == str(tmp_path / "x")
    assert not [*tmp_path.iterdir()]


def test_a_working_directory_that_is_gone_is_reported(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); from vae_lab.cli import main; main(['report', 'x'])"
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path / "gone", env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "The working directory cannot be used (No such file or directory): cd to one that exists\n"
