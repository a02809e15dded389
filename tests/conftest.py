"""What the tests share: configurations composed as the command line composes them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from vae_lab.config import Run, config_folder, register_resolvers

register_resolvers()

Compose = Callable[..., Run]


@pytest.fixture
def run_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compose]:
    """Overrides to the run they describe; its folder lies in the test's own."""
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield lambda *overrides: Run.of(compose("train", list(overrides), return_hydra_config=True))


@pytest.fixture(autouse=True, scope="session")
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One thread, fastest for small models, and a cache that is not the user's."""
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
