"""A search: what it may try, that a kill changes nothing of it, and what it tells."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import Compose
from hydra import compose, initialize_config_dir

from vae_lab import search
from vae_lab.config import ConfigError, config_folder
from vae_lab.config.widths import scaled
from vae_lab.results.trials import Choice, Number, Trial, Trials, TrialsError, read_trials, write_trials
from vae_lab.search.propose import propose
from vae_lab.search.space import ends, parse, size
from vae_lab.search.sweeper import _figures
from vae_lab.study.searches import importances

ROOT = Path(__file__).parents[1]
SMALL = (
    "data.num_train=64", "data.num_val=32", "data.num_test=20", "data.batch_size=32", "trainer.max_epochs=1",
    "trainer.threads=1", "encoder=mlp", "decoder=mlp", "callbacks=quiet", "metrics.frechet=false",
)  # fmt: skip
SPACE = ("latent.dim=4,8,16", "objective.beta=tag(log,interval(0.001,0.1))", "++encoder.width=interval(0.5,1)")
SEARCH = ("-m", "hydra/sweeper=optuna", *SPACE, *SMALL)


def train(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return forks.run(ROOT / "train.py", *words, cwd=folder, env=os.environ | {"COLUMNS": "120"} | variables)


def trials(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / "outputs" / name / "search.json").read_text())["trials"]


@pytest.mark.slow
def test_a_search_that_is_killed_and_resumed_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    words = (*SEARCH, "hydra.sweeper.n_trials=12")
    whole = train(tmp_path, *words, "name=whole")
    assert whole.returncode == 0, whole.stderr
    found = trials(tmp_path, "whole")
    assert [one["state"] for one in found] == ["finished"] * 12
    assert len({one["run"] for one in found}) == 12
    assert {one["values"]["latent.dim"] for one in found} <= {"4", "8", "16"}
    for one in found:
        result = json.loads((tmp_path / "outputs/whole" / one["run"] / "result.json").read_text())
        assert result["val"]["total"] == one["loss"]

    kills = 11  # where TPE chooses: the first ten are drawn at random
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words, "name=killed"], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    record = tmp_path / "outputs/killed/search.json"
    while process.poll() is None and not (record.exists() and len(trials(tmp_path, "killed")) >= kills):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(trials(tmp_path, "killed")) >= kills
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "outputs/killed").glob("*/*/result.json")}
    again = train(tmp_path, *words, "name=killed")
    assert again.returncode == 0, again.stderr
    assert "a search of 12 trials for the lowest val.total under outputs/killed" in again.stdout
    assert trials(tmp_path, "killed") == found
    assert before == {path: path.stat().st_mtime_ns for path in before}

    page = (tmp_path / "outputs/killed/report/report.md").read_text()
    assert "latent.dim" in page
    best = min(found, key=lambda one: one["loss"])
    assert best["run"].partition("/")[0].replace("_", "") in page.replace("\\", "").replace("_", "")
    assert {"search_killed_history.png", "search_killed_importance.png"} <= {
        path.name for path in (tmp_path / "outputs/killed/report").iterdir()
    }
    other = train(tmp_path, *words[:-1], "hydra.sweeper.n_trials=13", "hydra.sweeper.seed=1", "name=killed")
    assert other.returncode == 1
    assert "holds another search (hydra.sweeper.seed was 0, is 1)" in other.stderr
    study = search.load(tmp_path / "outputs/killed")
    assert study.best_value == best["loss"]


@pytest.mark.slow
def test_a_launcher_runs_several_trials_by_any_term_and_one_may_fail(tmp_path: Path) -> None:
    words = (*SEARCH, "hydra/launcher=local", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    words = (*words, "objective=beta_tc", "hydra.sweeper.metric=val.mutual_information")
    done = train(tmp_path, *words, "optimizer.lr=0.005,1e30", "name=both")
    states = {one["values"]["optimizer.lr"]: one["state"] for one in trials(tmp_path, "both")}
    assert len(trials(tmp_path, "both")) == 4
    assert states.get("1e+30", "failed") == "failed"
    assert states.get("0.005", "finished") == "finished"
    for one in trials(tmp_path, "both"):
        result = json.loads((tmp_path / "outputs/both" / one["run"] / "result.json").read_text())
        assert result["val"].get("mutual_information") == one["loss"]
    assert done.returncode == ("1e+30" in states)
    assert "Launcher local: " in done.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["latent.dim=interval(-3,5)"], "latent.dim: "),
        (["seed=0,1"], "seed: cannot be searched: it is luck"),
        (["encoder=vanilla,nix"], "encoder: there is no choice 'nix'"),
        (["objective.beta=tag(log,interval(0,1))"], "must be greater than 0 to be searched on a logarithmic scale"),
        (["latent.dim=8"], "there is nothing to search"),
        (["latent.dim=4,8", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials: must be at least 1, but is 0"),
        (["latent.dim=4,8", "hydra.sweeper.sampler=tp"], "did you mean 'tpe'?"),
        (["latent.dim=4,8", "hydra.sweeper.trials=3"], "hydra.sweeper.trials"),
        (["latent.dim=4,8", "hydra.sweeper.metric=total"], "must be a figure of the validation images, val.total, "),
        (
            ["latent.dim=4,8", "objective=elbo", "hydra.sweeper.metric=val.beta"],
            "val.beta, which vae_lab.Elbo does not have; known: val.total, val.reconstruction, val.kl, val.elbo",
        ),
        (
            ["objective.schedule=linear,constant", "latent.dim=4", "objective=elbo", "hydra.sweeper.metric=val.beta"],
            "val.beta, which vae_lab.Elbo does not have with objective.schedule=constant; known",
        ),
        (
            ["latent.dim=4,8", "objective=beta_tc", "hydra.sweeper.metric=val.mutual_info"],
            "known: val.total, val.reconstruction, val.kl, val.mutual_information, ",
        ),
        (
            ["latent.dim=4,8", "objective=mmd", "posterior=point", "hydra.sweeper.metric=val.kl"],
            "val.kl, which vae_lab.Mmd does not have; known: val.total, val.reconstruction, val.mmd",
        ),
        (["objective.beta=0,0.01", "hydra.sweeper.metric=val.elbo"], "does not have with objective.beta=0; "),
        (["latent.dim=4,8", "data.num_val=0"], "data.num_val: must be at least 1, since the search goes by val.total"),
    ],
)
def test_mistakes_are_reported_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    from vae_lab import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which the command sets for its process
    with pytest.raises(SystemExit) as ending:
        cli.main(["train", "-m", "hydra/sweeper=optuna", "name=wrong", *SMALL, *words])
    assert ending.value.code == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists() or not list((tmp_path / "outputs").rglob("search.json"))


@pytest.mark.parametrize(
    ("words", "further"),
    [
        (["objective=elbo", "objective.schedule=linear"], ["val.beta"]),
        (["objective=elbo", "objective.target_kl=5", "objective.beta=9"], ["val.target_kl"]),
        (["objective=elbo", "objective.perceptual=1"], ["val.perceptual"]),
        (["objective=dip"], ["val.off_diagonal", "val.diagonal"]),
    ],
)
def test_terms_that_keys_switch_on_can_be_searched(run_of: Compose, words: list[str], further: list[str]) -> None:
    assert _figures(run_of(*words)) == ["val.total", "val.reconstruction", "val.kl", *further, "val.elbo"]


def test_without_optuna_the_command_that_installs_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("train", ["hydra/sweeper=optuna", "name=x"], return_hydra_config=True)
    with pytest.raises(ConfigError, match=r"pip install 'vae-lab\[optuna\]'"):
        search.plan(composed)


def test_sweep_syntax_of_hydra_defines_the_search_space() -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("train", ["name=x"], return_hydra_config=True)
    space, fixed = parse(
        ["latent.dim=range(16,257,16)", "objective.beta=tag(log,interval(1e-3,0.1))", "data.batch_size=interval(16,64)",
         "encoder=vanilla,mlp", "seed=3"], composed,
    )  # fmt: skip
    assert fixed == ["seed=3"]
    assert space == {
        "latent.dim": Number(low=16, high=256, whole=True, step=16),
        "objective.beta": Number(low=0.001, high=0.1, log=True),
        "data.batch_size": Number(low=16, high=64, whole=True),
        "encoder": Choice(choices=["vanilla", "mlp"]),
    }
    corners = list(ends(space))
    assert {one["encoder"] for one in corners} == {"vanilla", "mlp"}
    assert {one["latent.dim"] for one in corners} == {16, 256}


def record(count: int) -> Trials:
    """A search whose loss is decided by one key of two."""
    space = {"a": Number(low=0, high=1), "b": Number(low=0, high=1)}
    known = Trials(metric="val.total", sampler="tpe", seed=0, fixed=[], space=space)
    for number in range(count):
        values = propose(known, [])
        loss = (float(values["a"]) - 0.3) ** 2 + 0.001 * float(values["b"])
        known = known.plus([Trial(number=number, values=values, state="finished", loss=loss, run=f"c/{number}")])
    return known


def test_proposals_depend_on_the_record_alone_and_find_the_optimum(tmp_path: Path) -> None:
    known = record(40)
    write_trials(tmp_path, known)
    assert read_trials(tmp_path) == known
    assert propose(known, []) == propose(read_trials(tmp_path) or known, [])
    late = [one for one in known.trials if one.number >= 30]
    assert abs(sum(float(one.values["a"]) for one in late) / len(late) - 0.3) < 0.1
    shares = importances(known)
    assert shares["a"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(record(3)) == {}


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize(
    ("space", "points"),
    [
        ({"a": Choice(choices=["1", "2", "3", "4", "5"])}, 5),
        ({"a": Choice(choices=["x", "y", "z"]), "b": Number(low=1, high=4, whole=True)}, 12),
        ({"a": Number(low=0.1, high=0.5, step=0.2), "b": Number(low=16, high=64, whole=True, step=16)}, 12),
    ],
)
def test_a_finite_space_is_tried_out_before_anything_is_tried_twice(
    space: dict[str, Choice | Number], points: int, sampler: str
) -> None:
    assert size(space) == points
    known = Trials(metric="val.total", sampler=sampler, seed=0, fixed=[], space=space)
    for number in range(points):
        values = propose(known, [])
        known = known.plus([Trial(number=number, values=values, state="finished", loss=1.0, run=f"c/{number}")])
    assert len({tuple(one.values.values()) for one in known.trials}) == points
    assert Trials.model_validate(known.model_dump()) == known  # every value lies in the space
    assert propose(known, []).keys() == space.keys()
    assert size(space | {"c": Number(low=0, high=1)}) is None


def test_a_damaged_record_is_reported(tmp_path: Path) -> None:
    assert read_trials(tmp_path) is None
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(TrialsError):
        read_trials(tmp_path)
    with pytest.raises(TrialsError, match="there is no search"):
        search.load(tmp_path / "nowhere")


def test_widths_multiply_those_of_the_file(run_of: Compose) -> None:
    plain, half = run_of(), run_of("++encoder.width=0.5")
    assert half.config.sha256() != plain.config.sha256()
    was, now = (scaled(run.config).encoder for run in (plain, half))
    assert [block.down for block in now.blocks] == [block.down // 2 for block in was.blocks]
    assert scaled(half.config).decoder == plain.config.decoder
    with pytest.raises(ConfigError, match=r"encoder\.width"):
        run_of("++encoder.width=0")
