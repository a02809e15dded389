"""Whatever can change a result is part of what a run is, and nothing else."""

import pytest
from conftest import Compose

from vae_lab.config import names
from vae_lab.config.identity import changes_results

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


def test_each_callback_of_ours_says_whether_it_changes_results() -> None:
    watching = {"Progress", "Monitor", "Pictures", "TensorBoardPages"}
    for name in names.files("callbacks"):
        assert changes_results({"_target_": f"vae_lab.{name}"}) == (name not in watching)
