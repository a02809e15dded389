"""Whatever can change a result is part of what a run is, and nothing else."""

from pathlib import Path

import pytest
from conftest import Compose
from omegaconf import OmegaConf

from vae_lab.config import ConfigError, build, cell_name, check_targets, identifying, names
from vae_lab.config.identity import changes_results
from vae_lab.config.runs import experiment_words

SWA = (
    "+callbacks.swa._target_=lightning.pytorch.callbacks.StochasticWeightAveraging", "+callbacks.swa.swa_lrs=0.01",
)  # fmt: skip


def test_a_callback_that_changes_training_makes_another_run(run_of: Compose) -> None:
    """Seen before: stochastic weight averaging gave the folder and the checksum of the run without it."""
    plain, averaged = run_of("name=x"), run_of("name=x", *SWA)
    assert averaged.cell != plain.cell
    assert averaged.directory != plain.directory
    assert averaged.config.sha256() != plain.config.sha256()
    assert run_of("name=x", *SWA, "callbacks.swa.swa_lrs=0.02").config.sha256() != averaged.config.sha256()


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks=quiet"],
        ["callbacks.monitor.every_steps=3", "callbacks.pages.points=0"],
        ["~callbacks.pictures"],
        ["logger=csv"],
        ["logger=wandb"],
        ["+callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor"],
        ["+callbacks.mine._target_=mine.Watcher", "+callbacks.mine.changes_results=false"],
        ["+trainer.log_every_n_steps=5"],
        ["metrics=full"],
        ["data.root=elsewhere"],
        ["+trainer.num_sanity_val_steps=2", "+trainer.enable_autolog_hparams=false"],
        ["trainer.devices=1"],
        ["trainer.devices=[0]"],
        ["plan=true"],
    ],
    ids=" ".join,
)
def test_what_only_watches_does_not(run_of: Compose, words: list[str]) -> None:
    plain, watched = run_of("name=x"), run_of("name=x", *words)
    assert (watched.cell, watched.config.sha256()) == (plain.cell, plain.config.sha256())


@pytest.mark.parametrize(
    "words",
    [
        ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.monitor=val/total"],
        ["+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"],
        ["+callbacks.mine._target_=mine.Callback"],
        [
            "+callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor",
            "+callbacks.lr.changes_results=true",
        ],
        ["+logger.mine._target_=mine.Logger"],
        ["+trainer.gradient_clip_val=1.0"],
        ["data.binarize=static"],
        ["likelihood.link=identity"],
        ["objective=elbo"],
    ],
    ids=" ".join,
)
def test_whatever_may_change_a_result_does(run_of: Compose, words: list[str]) -> None:
    plain, changed = run_of("name=x"), run_of("name=x", *words)
    assert changed.cell != plain.cell
    assert changed.config.sha256() != plain.config.sha256()


@pytest.mark.parametrize("launcher", ["submitit_local", "local"])
def test_a_launcher_that_an_experiment_chooses_makes_no_other_run(tmp_path: Path, launcher: str) -> None:
    (tmp_path / "experiment").mkdir()
    chosen = f"  - override /hydra/launcher: {launcher}\n"
    cells = []
    for defaults in ("", f"defaults:\n{chosen}"):
        (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\n{defaults}latent:\n  dim: 8\n")
        node = OmegaConf.create(
            {
                "runtime": {
                    "choices": {"experiment": "mine"},
                    "config_sources": [{"path": str(tmp_path), "schema": "file"}],
                }
            }
        )
        cells.append(cell_name("a", "b", identifying(experiment_words(node), {})))
    assert cells == ["a-b__latent.dim-8"] * 2


STOP = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/total"
LOGGER = "+logger.mine={_target_:mine.Logger"


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ([STOP + ",verbose:true}"], [STOP + ",verbose:false}"]),
        ([LOGGER + ",save_dir:/tmp/logs}"], [LOGGER + ",save_dir:elsewhere}"]),
        ([LOGGER + ",file:${vae_lab.run_folder:}/x.txt}"], [LOGGER + ",file:${vae_lab.run_folder:}/x.txt}", "seed=3"]),
        ([LOGGER + ",run:${name}}"], [LOGGER + ",run:${name}}", "name=y"]),
        ([LOGGER + ",run:a/seed-${seed}}"], [LOGGER + ",run:a/seed-${seed}}", "seed=3"]),
    ],
    ids=["verbose", "save_dir", "own folder", "name", "seed"],
)
def test_where_a_callback_or_logger_writes_makes_no_other_run(
    run_of: Compose, words: list[str], same: list[str]
) -> None:
    assert run_of("name=x", *words).config.sha256() == run_of("name=x", *same).config.sha256()
    assert run_of("name=x", *words).config.sha256() != run_of("name=x").config.sha256()


def test_changes_results_is_a_key_of_callbacks_and_loggers_alone(run_of: Compose) -> None:
    run = run_of("+callbacks.mine={_target_:builtins.dict,a:1,changes_results:false}", "+optimizer.changes_results=1")
    assert run.config.callbacks is not None
    assert build(run.config.callbacks["mine"]) == {"a": 1}
    with pytest.raises(ConfigError, match=r"optimizer\.changes_results: \w+ takes no such argument"):
        check_targets(run.config, ["optimizer"])
    with pytest.raises(ConfigError, match="changes_results must be true or false, but is 'no'"):
        run_of("+callbacks.mine={_target_:builtins.dict,changes_results:'no'}")


def test_each_callback_of_ours_says_whether_it_changes_results() -> None:
    watching = {"Progress", "Monitor", "Pictures", "TensorBoardPages"}
    for name in names.files("callbacks"):
        assert changes_results({"_target_": f"vae_lab.{name}"}) == (name not in watching)
