"""Test metrics in a run, in one that had finished before, and in somebody else's."""

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from conftest import Compose
from hydra.core.global_hydra import GlobalHydra
from test_runner import SMALL
from torch import Tensor, nn

from vae_lab import cli, config, results
from vae_lab.config import MetricsConfig
from vae_lab.evaluation import runs
from vae_lab.trained.evaluate import evaluate as evaluate_run
from vae_lab.trained.foreign import LoadError
from vae_lab.training import plan, runner
from vae_lab.training.callbacks import Row

WORDS = (*SMALL, "callbacks=quiet", "logger=csv")
FULL = MetricsConfig(iwae=[1, 10, 100], probe=True, samplers=True)


class Loud(nn.Module):
    """Makes posteriors that no decoder needs."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


def evaluate(*arguments: str) -> None:
    """`vae-lab evaluate`, where the fixture has Hydra initialised already."""
    GlobalHydra.instance().clear()
    cli.main(["evaluate", *arguments])


@pytest.fixture
def run(run_of: Compose) -> config.Run:
    run = run_of(*WORDS)
    assert runner.run(run).finished
    return run


def test_a_run_has_the_metrics_that_were_asked_for(run: config.Run) -> None:
    test = json.loads((run.directory / "result.json").read_text())["test"]
    assert {name for name, value in test.items() if value is None} == {
        "iwae_1", "iwae_10", "iwae_100", "effective_samples", "bits_per_dim", "probe_accuracy",
        "fid_samples_gaussian", "fid_samples_mixture", "rate_bits", "codebook_used", "codebook_perplexity",
    }  # fmt: skip
    assert len(test["kl_per_dimension"]) == 8
    assert test["psnr"] > 0


def test_asked_for_later_they_are_computed_from_the_weights(run: config.Run, run_of: Compose) -> None:
    before = results.read_result(run.directory)
    later = run_of(*WORDS, "metrics=full")
    assert before is not None
    assert plan.measured(run, before)
    assert not plan.measured(later, before)
    assert later.cell == run.cell
    runs.complete(later, before)
    after = results.read_result(run.directory)
    assert after is not None
    assert plan.finished(later) == after
    assert plan.measured(later, after)
    assert after.test.iwae_10 < after.test.iwae_100
    known = {name: value for name, value in before.test.model_dump().items() if value is not None}
    measured = {name: after.test.model_dump()[name] for name in known}
    assert measured.pop("kl_per_dimension") == pytest.approx(known.pop("kl_per_dimension"), rel=1e-4)
    assert measured == pytest.approx(known, rel=1e-4)
    assert after.train == before.train
    assert after.timing.epoch_seconds == before.timing.epoch_seconds


def test_evaluate_measures_and_shows(run: config.Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(str(run.directory))
    shown = capsys.readouterr().out
    assert "IWAE-100" in shown
    assert "probe accuracy" in shown
    result = results.read_result(run.directory)
    assert result is not None
    assert result.metrics == FULL.model_dump()
    assert f"{result.test.iwae_100:,.1f}".replace("-", "−") in shown
    # What is known by now stays known.
    evaluate(str(run.directory), "--metrics", "fast")
    assert results.read_result(run.directory).test.iwae_100 == pytest.approx(result.test.iwae_100)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["."], "no runs under"),
        ([], "the following arguments are required"),
    ],
)
def test_what_cannot_be_evaluated_is_reported(
    arguments: list[str], words: str, run: config.Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    place = [str(tmp_path / "empty") if one == "." else one for one in arguments]
    with pytest.raises(SystemExit) as ending:
        evaluate(*place)
    assert ending.value.code != 0
    assert words in capsys.readouterr().err


def test_wrong_choices_devices_and_damage_are_reported(run: config.Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run.directory)
    for arguments, words in (
        (["--metrics", "ful"], "metrics: there is no choice 'ful'; did you mean 'full'?"),
        (["--device", "tpu9"], "there is no device 'tpu9'"),
        (["--data-root", "nowhere"], "there is no folder nowhere"),
    ):
        with pytest.raises(SystemExit):
            evaluate(folder, *arguments)
        assert words in " ".join(capsys.readouterr().err.split())
    (run.directory / "model.safetensors").unlink()
    with pytest.raises(SystemExit):
        evaluate(folder)
    assert "model.safetensors" in capsys.readouterr().err


def test_of_a_strangers_run_no_data_set_is_imported_but_torchvisions(run: config.Run, tmp_path: Path) -> None:
    stranger = tmp_path / "seed-0"
    shutil.copytree(run.directory, stranger)
    settings = yaml.safe_load((stranger / "config.yaml").read_text())
    name = "torchvision.datasets.utils.antigravity"
    for key, value in (("dataset", "antigravity.fly"), ("dataset", name), ("_target_", "antigravity.fly")):
        changed = settings | {"data": settings["data"] | {key: value}}
        (stranger / "config.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(LoadError, match="antigravity"):
            evaluate_run(stranger, FULL)


def test_of_a_strangers_run_no_objective_is_built_but_ours(run: config.Run, tmp_path: Path) -> None:
    stranger = tmp_path / "seed-0"
    shutil.copytree(run.directory, stranger)
    settings = yaml.safe_load((stranger / "config.yaml").read_text())
    for objective in (
        {"_target_": "antigravity.Fly"},
        {"_target_": "vae_lab.MseKl", "beta": {"_target_": "antigravity.Fly"}},
        {"_target_": "vae_lab.trained.load", "folder": {"_target_": "antigravity.Fly"}},
    ):
        (stranger / "config.yaml").write_text(yaml.safe_dump(settings | {"objective": objective}))
        with suppress(LoadError, config.ConfigError):
            evaluate_run(stranger, FULL)
        assert "antigravity" not in sys.modules


def test_metrics_that_fail_cost_no_model_and_are_taken_by_the_same_command(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> None:
        raise MemoryError("no room")

    run = run_of(*WORDS)
    with monkeypatch.context() as patch:
        patch.setattr("vae_lab.training.callbacks.quality.measure", measure)
        result = runner.run(run)
    assert result.finished
    assert result.warnings == ["test metrics: they could not be taken (MemoryError: no room)"]
    assert plan.finished(run) is not None
    assert not plan.measured(run, result)
    after = runs.complete(run, result)
    assert plan.measured(run, after)
    assert after.test.psnr is not None
    assert after.test.total == result.test.total
    assert not any(warning.startswith("test metrics") for warning in after.warnings)


def test_an_epoch_without_validation_keeps_its_place(run: config.Run) -> None:
    kl = {(1, "train"): 0.5, (2, "train"): 30.0, (2, "val"): 20.0, (2, "test"): 99.0}
    rows = [Row(*place, 0.0, {"total": 1.0, "reconstruction": 1.0, "kl": value}) for place, value in kl.items()]
    results.write_history(run.directory, rows)
    before = results.read_result(run.directory)
    assert before is not None
    warning = runs.complete(run, before).warnings[-1]
    assert warning.startswith("exploding KL: 30 nats a latent dimension in epoch 2 ")


def test_what_is_wrong_with_a_model_is_recorded(run_of: Compose) -> None:
    collapsed = runner.run(run_of(*WORDS, "objective.beta=1000", "trainer.max_epochs=3", "optimizer.lr=0.01"))
    assert [warning.partition(":")[0] for warning in collapsed.warnings] == ["posterior collapse"]
    assert collapsed.test.active_units == 0
    loud = run_of(*WORDS, f"encoder.blocks=[{{dense:8}},{{_target_: {__name__}.Loud}}]", "trainer.max_epochs=1")
    exploded = runner.run(loud)
    assert exploded.finished
    assert "exploding KL" in [warning.partition(":")[0] for warning in exploded.warnings]


def test_a_run_that_another_process_works_in_is_left_alone(run: config.Run) -> None:
    before = (run.directory / "result.json").read_bytes()
    with results.locked(run.directory), pytest.raises(LoadError, match="is in the hands of process"):
        evaluate_run(run.directory, FULL)
    assert (run.directory / "result.json").read_bytes() == before


def test_without_its_weights_a_run_is_not_measured_and_a_remedy_is_given(run: config.Run, run_of: Compose) -> None:
    (run.directory / "model.safetensors").unlink()
    before = results.read_result(run.directory)
    assert before is not None
    with pytest.raises(OSError, match=r"model\.safetensors is missing, .*; remove result\.json"):
        runs.complete(run_of(*WORDS, "metrics=full"), before)
    (run.directory / "result.json").unlink()
    assert runner.run(run).finished
    assert (run.directory / "model.safetensors").is_file()
