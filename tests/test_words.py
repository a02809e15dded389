"""Mistakes on the command line: what a tired user hears."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose

from vae_lab import config
from vae_lab.cli import arguments, main
from vae_lab.cli.words import Words, prefer
from vae_lab.config import ConfigError, Problem, config_folder, terminal

ROOT = Path(__file__).parents[1]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with my_conf/encoder/wide.yaml, in which commands are typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_conf/encoder").mkdir(parents=True)
    (tmp_path / "my_conf/encoder/wide.yaml").write_text("blocks: [{down: 4}]")
    yield tmp_path
    prefer(None)


def complaint(*words: str) -> str:
    with pytest.raises(ConfigError) as raised:
        Words.read(words)
    return str(raised.value)


@pytest.mark.parametrize("word", ["logger=[tensorboard,csv]", "callbacks=[default,quiet]"])
def test_several_loggers_and_callbacks_are_used_at_once(word: str) -> None:
    assert Words.read([word]).overrides == [word]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("latent.dim|=|64", "a value has no spaces around its '=' and ',': write latent.dim=64"),
        ("latent.dim=|64", "write latent.dim=64"),
        ("seed=1|latent.dim|=64", "write latent.dim=64"),
        ("-m|encoder=vanilla,|encdec|seed=1", "write encoder=vanilla,encdec"),
        ("-m|encoder=vanilla|,encdec", "write encoder=vanilla,encdec"),
        ("latent.dim|64", "a value comes behind '=': write latent.dim=64"),
        ("encoder:|vanilla", "a value comes behind '=': write encoder=vanilla"),
        ("-m|seed=1|2|3", "'2' has no key; for a run of each value write -m seed=1,2,3"),
        ("--lr|0.1", "there is no flag --lr; values have no dashes: optimizer.lr=0.1"),
        ("--encoder=vanilla", "values have no dashes: encoder=vanilla"),
        ("--latent-dim|64", "values have no dashes: latent.dim=64"),
        ("--multrun", "there is no flag --multrun; did you mean '--multirun'?"),
        ("latent=64", "latent: is the name of a choice, but is 64; did you mean latent.dim=64? known: fsq, lfq"),
        ("optimizer=0.01", "did you mean optimizer.lr=0.01"),
        ("-m|latent=64,32", "did you mean latent.dim=64,32?"),
        ("encoder=[vanilla,encdec]", "for a run of each write -m encoder=vanilla,encdec"),
        ("encoder=my_conf/encoder/wide.yaml", "is a path; write --config-dir my_conf encoder=wide for"),
        (
            "--config-dir|my_conf/encoder",
            "holds wide.yaml itself, but a folder with <group>/<name>.yaml",
        ),
        ("--config-dir=my_cnf", "--config-dir: my_cnf: there is no such folder; did you mean my_conf?"),
        ("-cd|my_conf/encoder/wide.yaml", "is a file; a folder with <group>/<name>.yaml"),
    ],
)
def test_mistakes_in_words_are_reported_with_what_to_write(user: Path, words: str, told: str) -> None:
    assert told in complaint(*words.split("|"))


@pytest.mark.parametrize(
    ("typed", "overrides", "flags"),
    [
        ("encoder=vanilla|-m|seed=1", ["encoder=vanilla", "seed=1"], ["-m"]),
        ("seed=1|--cfg|job|--config-dir|my_conf|name=x", ["seed=1", "name=x"], ["--cfg", "job"]),
        ("--info|seed=1", ["seed=1"], ["--info"]),
        ("name=|seed=0|~scheduler", ["name=", "seed=0", "~scheduler"], []),
        ("encoder=wide.yaml,vanilla.yml", ["encoder=wide,vanilla"], []),
        ("name=größe", ["name='größe'"], []),
        ("name=größe,straße|+a=[ä,{b:ü}]", ["name='größe','straße'", "+a=['ä',{b:'ü'}]"], []),
        ("name='größe'", ["name='größe'"], []),
        ("latent.dim=${oc.env:DIM}", ["latent.dim=64"], []),
        ("latent.dim=${oc.env:NOT_SET,8}", ["latent.dim=8"], []),
        ("encoder=${oc.env:WHICH}", ["encoder=wide"], []),
        ("name=${oc.env:WHICH}", ["name=${oc.env:WHICH}"], []),
    ],
)
def test_words_whose_meaning_is_clear_are_corrected(
    user: Path, monkeypatch: pytest.MonkeyPatch, typed: str, overrides: list[str], flags: list[str]
) -> None:
    monkeypatch.setenv("DIM", "64")
    monkeypatch.setenv("WHICH", "wide")
    read = Words.read(typed.split("|"))
    assert (read.overrides, read.flags) == (overrides, flags)


def test_a_value_of_the_environment_has_the_type_of_its_key(
    run_of: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"DIM": "64", "LR": "1e-3", "EPOCHS": "3", "FOLDER": "2024", "WHETHER": "true"}.items():
        monkeypatch.setenv(name, value)
    typed = {"latent.dim": "DIM", "optimizer.lr": "LR", "trainer.max_epochs": "EPOCHS", "data.root": "FOLDER",
             "metrics.frechet": "WHETHER", "name": "FOLDER"}  # fmt: skip
    found = run_of(*(f"{key}=${{oc.env:{name}}}" for key, name in typed.items())).config
    assert (found.latent_dim, found.optimizer.lr, found.data.root, found.name) == (64, 0.001, "2024", "2024")
    assert found.scheduler is not None
    assert found.scheduler.model_dump()["total_steps"] == 3 * 47
    assert found.metrics.frechet is True


def explained(run_of: Compose, *overrides: str) -> Problem:
    try:
        run_of(*overrides)
    except ConfigError as error:
        return error.problems[0]
    except Exception as error:
        return config.explain(error).problems[0]
    raise AssertionError("no error")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("lr=0.001", "optimizer.lr=0.001"),
        ("learning_rate=0.1", "optimizer.lr=0.1"),
        ("epochs=5", "trainer.max_epochs=5"),
        ("num_epochs=5", "trainer.max_epochs=5"),
        ("latent_dim=64", "latent.dim=64"),
        ("model.latent_dim=64", "latent.dim=64"),
        ("optimizer.epochs=5", "trainer.max_epochs=5"),
        ("beta=1", "objective.beta=1"),
        ("batch_size=32", "data.batch_size=32"),
        ("threads=2", "trainer.threads=2"),
        ("precision=32-true", "trainer.precision=32-true"),
        ("max_steps=5", "+trainer.max_steps=5"),
        ("device=cuda", "trainer=gpu"),
        ("gpus=1", "trainer=gpu"),
        ("dataset=mnist", "data=mnist"),
        ("model=resnet", "encoder=resnet or decoder=resnet"),
        ("loss=elbo", "objective=elbo"),
        ("Seed=3", "seed=3"),
    ],
)
def test_the_key_that_an_unknown_one_may_stand_for_is_offered(run_of: Compose, override: str, meant: str) -> None:
    text = explained(run_of, override).text
    offered = text.partition("did you mean ")[2].removesuffix("?")
    assert set(offered.split(" or ")) == set(meant.split(" or ")), text


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("encoder=vanilla,encdec", "encoder", "add -m for a run of each: -m encoder=vanilla,encdec"),
        ("seed=range(0,3)", "seed", "add -m for a run of each: -m seed=range(0,3)"),
        ("seed=0-4", "seed", "write -m seed=0,1,2,3,4 or -m 'seed=range(0,5)'"),
        ("seed=0..9", "seed", "write -m seed=0,1,2,3,4,… or -m 'seed=range(0,10)'"),
        ("latent.dim=[16,32]", "latent.dim", "write -m latent.dim=16,32"),
        ("trainer.max_steps=4", "trainer.max_steps", "is not in the file; add it with a plus: +trainer.max_steps=4"),
        ("encoder.width=2", "encoder.width", "add it with a plus: +encoder.width=2"),
        ("data.root=/a(b)/c", "command line", "is quoted twice: \"data.root='/a(b)/c'\""),
    ],
)
def test_the_way_to_write_it_is_told(run_of: Compose, override: str, key: str, words: str) -> None:
    problem = explained(run_of, override)
    assert problem.key == key
    assert words in problem.text


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which the command sets for its process
    with pytest.raises(SystemExit) as ending:
        main(words)
    return ending.value.code


@pytest.mark.parametrize("command", ["train", "describe"])
def test_a_file_of_the_user_replaces_ours_and_this_is_said(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (user / "my_conf/encoder/resnet.yaml").write_text("blocks: [{down: -7}]")
    assert called(monkeypatch, command, "encoder=resnet", "--config-dir", "my_conf", "name=x") == 1
    said = capsys.readouterr().err
    assert "encoder=resnet is my_conf/encoder/resnet.yaml, not the file of vae_lab." in said
    assert "encoder.blocks[0].down: must be at least 1, but is -7" in said
    assert called(monkeypatch, command, "encoder=resnet", "latent.dim=0", "name=x") == 1
    said = capsys.readouterr().err
    assert "my_conf" not in said
    assert "blocks" not in said


def test_overrides_may_stand_on_both_sides_of_a_flag(
    user: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "train", "seed=0,1", "-m", "trainer.max_epochs=ten", "name=größe") == 1
    assert capsys.readouterr().err.endswith("\n  trainer.max_epochs: must be a whole number, but is 'ten'\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("study", "outputs/study"), ("outputs/stduy", "outputs/study"), ("study/vanilla", "outputs/study/vanilla")],
)
def test_a_folder_that_may_be_meant_is_offered(
    user: Path, capsys: pytest.CaptureFixture[str], typed: str, meant: str
) -> None:
    (user / "outputs/study/vanilla").mkdir(parents=True)
    with pytest.raises(SystemExit) as ending:
        arguments.existing(typed)
    assert ending.value.code == 1
    assert f"there is no folder {typed}; did you mean {meant}?" in capsys.readouterr().err
    assert arguments.existing(meant) == Path(meant)


@pytest.mark.parametrize(
    ("words", "told"),
    [(["trian"], "did you mean 'vae-lab train'?"), (["encoder=mlp"], "did you mean 'vae-lab train encoder=mlp'?"),
     (["reprot", "x"], "did you mean 'vae-lab report'?")],
)  # fmt: skip
def test_the_command_that_may_be_meant_is_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert called(monkeypatch, *words) == 2
    assert told in capsys.readouterr().err


def test_another_command_behind_train_is_no_override(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "train", "report", "outputs/x") == 1
    assert "report is a command of its own: vae-lab report outputs/x" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/x/bin/vae-lab", "vae-lab train"),
        ("../train.py", "python ../train.py"),
        ("scripts/report.py", "python train.py"),
    ],
)
def test_advice_names_the_command_that_was_typed(monkeypatch: pytest.MonkeyPatch, program: str, command: str) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert terminal.train_command() == command


SCRIPTS = [ROOT / "train.py", *(ROOT / "scripts" / f"{name}.py" for name in
           ("commands", "describe", "evaluate", "export", "generate", "report"))]  # fmt: skip


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_programs_say_which_python_they_need(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    if path.name == "commands.py":
        return
    bare = [sys.executable, "-S", "-E", "-B", str(path)]  # without installed packages
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no package" in done.stderr
    assert "run `make setup`, then .venv/bin/python" in done.stderr
    old = f"import sys, runpy; sys.version_info = (3, 9, 1); runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path.parent)!r}); {old}"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert (
        done.stderr == "vae_lab needs Python 3.11 or newer, but this is Python 3.9: `make setup` makes .venv with one\n"
    )


def test_every_group_and_key_of_the_files_is_known() -> None:
    assert {"optimizer.lr", "latent.dim", "objective.beta"} <= {*config.keys.in_files()}
    assert {"trainer.max_steps", "match.tolerance", "encoder.width"} <= config.keys.to_add() | {*config.keys.in_files()}
    assert {*config.keys.groups()} == {path.parent.name for path in config_folder().glob("*/*.yaml")}
