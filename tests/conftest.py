"""What the tests share: configurations composed as the command line composes them."""

import functools
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_dir

from vae_lab.cli import main
from vae_lab.config import Run, config_folder, register_resolvers
from vae_lab.config.composing import Composer
from vae_lab.training.machine import freeze_imports

register_resolvers()

Compose = Callable[..., Run]


@functools.cache
def shipped(folder: Path) -> list[Path]:
    """The files under a folder of the project that git tracks: tests do not judge what a user has added.

    Where git does not know the project they are all files.
    """
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = b""
    tracked = [path for name in os.fsdecode(listed).split("\0") if name and (path := folder / name).is_file()]
    return sorted(tracked or (path for path in folder.rglob("*") if path.is_file()))


def shipped_choices(group: str) -> list[str]:
    """The choices of a config group that are part of the project."""
    folder = config_folder() / group
    return [str(path.relative_to(folder).with_suffix("")) for path in shipped(folder) if path.suffix == ".yaml"]


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fail at the call after this many calls of Python functions: a measure of work that no busy machine changes."""
    made = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal made
        if event == "call":
            made += 1
            if made > calls:
                sys.setprofile(None)
                pytest.fail(f"more than {calls:,} calls")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="session")
def composer() -> Composer:
    """Composes each combination of group choices once, as many tests have the same."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return Composer(compose("train", return_hydra_config=True))


@pytest.fixture
def run_of(composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compose]:
    """Overrides to the run they describe; its folder lies in the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> Run:
        composed = composer.run(overrides)
        composed.hydra.runtime.cwd = str(tmp_path)
        return Run.of(composed)

    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield run


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """`vae-lab …` in the test's folder, in this process: imports are paid once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    state = sys.argv[:], sys.path[:], dict(os.environ), logging.getLogger().handlers[:]

    def call(*words: str) -> Done:
        capsys.readouterr()
        sys.argv = ["vae-lab"]
        os.environ.pop("HYDRA_FULL_ERROR", None)
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Done(code, *capsys.readouterr())

    yield call
    sys.argv, sys.path[:] = state[0], state[1]
    os.environ.clear()
    os.environ.update(state[2])
    logging.getLogger().handlers[:] = state[3]


@pytest.fixture(autouse=True)
def _no_modules_of_a_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules in a test's folder, since another test may have one of the same name."""
    before, folder = {*sys.modules}, str(tmp_path_factory.getbasetemp())
    yield
    for name in {*sys.modules} - before:
        module = vars(sys.modules[name])
        if any(folder in str(module.get(where)) for where in ("__file__", "__path__")):
            del sys.modules[name]


@pytest.fixture(autouse=True, scope="session")
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One thread, fastest for small models, and a cache that is not the user's."""
    importlib.import_module("vae_lab.training.runner")
    importlib.import_module("vae_lab.report")
    freeze_imports()  # garbage collection would take as long as many of the tests
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    # Commands have more threads, which must not spin while they wait: other tests run beside them.
    os.environ["OMP_WAIT_POLICY"] = "passive"
