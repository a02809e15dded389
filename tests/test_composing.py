"""Runs of a sweep that share a composition have the configurations that Hydra composes one by one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from vae_lab.config import config_folder
from vae_lab.config.composing import Composer

RUNS = [
    ("encoder=encdec", "seed=1", "optimizer.lr=0.01"),
    ("seed=2", "encoder=encdec", "optimizer.lr=0.02"),  # another order
    ("encoder=encdec", "latent.dim=8", "match=parameters", "seed=4"),
    ("encoder=encdec", "+trainer.max_steps=3", "~callbacks.progress"),
    ("++trainer.max_steps=3", "data.num_train=100"),
    ("+encoder={a:1}", "+optimizer.betas=[0.5,0.9]"),
    ("optimizer=adamw", "optimizer.lr=0.3", "optimizer.lr=0.4"),
    ("experiment=priors", "latent.dim=${seed}", "name='a b'"),
    ("hydra.job.chdir=false", "seed=3", "metrics.probe=false"),
    (),
]
WRONG = [
    ["seed=1", "latent.dims=3"],
    ["+seed=1"],
    ["~latent.dims"],
    ["encoder=missing", "seed=1"],
    ["seed=1,2"],
    ["seed=["],
]


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DictConfig]:
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield compose("train", ["hydra.mode=MULTIRUN"], return_hydra_config=True)


def test_they_are_those_that_hydra_composes(multirun: DictConfig) -> None:
    composer, loader = Composer(multirun), GlobalHydra.instance().config_loader()
    for words in RUNS * 2:  # the second time from what the first has composed
        assert composer.run(words) == loader.load_sweep_config(multirun, [*words])


@pytest.mark.parametrize("words", WRONG, ids=str)
def test_errors_are_those_of_hydra(multirun: DictConfig, words: list[str]) -> None:
    composer, loader = Composer(multirun), GlobalHydra.instance().config_loader()
    with pytest.raises(HydraException) as expected:
        loader.load_sweep_config(multirun, words)
    for _ in range(2):
        with pytest.raises(type(expected.value)) as found:
            composer.run(words)
        assert str(found.value) == str(expected.value)


def test_runs_that_differ_in_values_are_composed_once(multirun: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, composed = GlobalHydra.instance().config_loader(), list[list[str]]()
    once = loader.load_sweep_config

    def counted(master: DictConfig, words: list[str]) -> DictConfig:
        composed.append(words)
        return once(master, words)

    monkeypatch.setattr(loader, "load_sweep_config", counted)
    composer = Composer(multirun)
    seeds = [
        composer.run([f"encoder={choice}", f"seed={seed}"]).seed for choice in ("vanilla", "encdec") for seed in (0, 1)
    ]
    assert seeds == [0, 1, 0, 1]
    assert composed == [["encoder=vanilla"], ["encoder=encdec"]]
