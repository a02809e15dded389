"""The real command lines, in a folder of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forks
import pytest
import yaml
from runs import write_run

from vae_lab.cli import main

ROOT = Path(__file__).parents[1]
SMALL = ("trainer=debug", "latent.dim=4", "trainer.threads=1")
Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`python train.py …` with another working folder, as a user's own."""

    def call(*words: str, torch: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"COLUMNS": "100"} | variables
        if torch and not variables:
            return forks.run(ROOT / "train.py", *words, cwd=tmp_path, env=environment)
        if not torch:  # what takes seconds to import must not be
            trap = tmp_path_factory.mktemp("trap")
            (trap / "torch.py").write_text("raise SystemExit('torch was imported')")
            environment["PYTHONPATH"] = str(trap)
        command = [sys.executable, str(ROOT / "train.py"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return call


def results_under(folder: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())
        for path in sorted(folder.rglob("result.json"))
    }


@pytest.mark.slow
def test_the_grid_its_files_and_the_same_name_again(train: Train, tmp_path: Path) -> None:
    words = ("-m", "encoder=vanilla,encdec", "decoder=vanilla,encdec", *SMALL, "name=grid")
    first = train(*words)
    assert first.returncode == 0, first.stderr
    unknown = "How long it takes is not known before a run has finished."
    assert first.stdout.startswith(f"Plan: 4 runs under outputs/grid: 4 to do. {unknown}\n")
    assert first.stderr == ""
    found = results_under(tmp_path / "outputs" / "grid")
    suffix = "__latent.dim-4__trainer-debug__trainer.threads-1/seed-0"
    cells = [f"{encoder}-{decoder}" for encoder in ("encdec", "vanilla") for decoder in ("encdec", "vanilla")]
    assert list(found) == [cell + suffix for cell in cells]
    for folder, result in found.items():
        assert result["status"] == "finished"
        assert result["cell"] == folder.partition("/")[0]
        assert folder.partition("/")[0] in first.stdout  # its row of the table
        assert (tmp_path / "outputs" / "grid" / folder / ".hydra" / "config.yaml").exists()
    assert "4/4  encdec-encdec" in first.stdout
    assert "Files: outputs/grid" in first.stdout
    assert "Report: outputs/grid/report/report.html" in first.stdout
    assert "No difference can be called real with one seed" in " ".join(first.stdout.split())
    assert [result["position"] for result in found.values()] == [4, 3, 2, 1]
    page = (tmp_path / "outputs/grid/report/report.html").read_text()
    assert all(folder.partition("/")[0] in page for folder in found)

    again = train(*words, torch=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("Plan: 4 runs under outputs/grid: 4 finished.\n")
    assert again.stdout.count("finished before, kept") == 4
    assert results_under(tmp_path / "outputs" / "grid") == found

    history, weights = (tmp_path / "outputs/grid" / list(found)[i] / name
                        for i, name in ((1, "history.csv"), (2, "model.safetensors")))  # fmt: skip
    history.write_text(history.read_text().replace("1", "2", 1))
    os.truncate(weights, 1000)
    (tmp_path / "outputs/grid" / list(found)[3] / "reconstructions.png").unlink()  # a hole
    planned = train(*words, "plan=true")
    assert planned.returncode == 0, planned.stderr
    head, *lines = planned.stdout.splitlines()
    assert head.startswith("Plan: 4 runs under outputs/grid: 2 finished, 2 to go on with. About 0:00:")
    assert head.endswith("judged by 2 finished runs.")
    assert f"  {list(found)[1]}: goes on after epoch 1 of 1, since {history} is damaged" in lines
    assert f"  {list(found)[3]}: finished" in lines
    assert len(lines) == 4
    assert os.path.getsize(weights) == 1000  # nothing was done

    report = subprocess.run([sys.executable, str(ROOT / "scripts/report.py"), "outputs/grid"], cwd=tmp_path,
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert report.returncode == 0, report.stderr
    told = f"{list(found)[1]} | left out, history.csv is not the file that it wrote: {history}"
    assert told in (tmp_path / "outputs/grid/report/report.md").read_text().replace("\\", "")

    mended = train(*words)
    assert mended.returncode == 0, mended.stderr
    assert f"2/4  {list(found)[2]}: done again, since {weights} is damaged" in mended.stdout
    assert mended.stdout.count("finished before, kept") == 2
    losses = [{split: result[split] for split in ("train", "val", "test")} for result in found.values()]
    now = results_under(tmp_path / "outputs/grid")
    assert [{split: result[split] for split in ("train", "val", "test")} for result in now.values()] == losses
    for folder in found:
        assert now[folder]["files"]["model.safetensors"] == found[folder]["files"]["model.safetensors"]

    changed = train(*words[:-1], "name=grid", "objective.beta=0.5")
    assert changed.returncode == 0, changed.stderr  # another cell, so no conflict
    folder, result = next(iter(found.items()))
    stored = tmp_path / "outputs" / "grid" / folder / "result.json"
    stored.write_text(stored.read_text().replace(result["config_sha256"], "0" * 64))
    stored = stored.with_name("config.yaml")
    stored.write_text(stored.read_text().replace("beta: 0.01", "beta: 0.02"))
    conflict = train(*words)
    assert conflict.returncode == 1
    assert "holds a finished run of another configuration (objective.beta was 0.02, is 0.01)" in conflict.stderr


@pytest.mark.parametrize("place", ["outputs", "outputs/x", "outputs/x/vanilla-vanilla/seed-1"])
def test_a_file_in_the_place_of_a_folder_is_reported_before_anything_runs(
    train: Train, tmp_path: Path, place: str
) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    done = train("-m", "encoder=vanilla", "decoder=vanilla", "seed=0,1", "name=x")
    assert done.returncode == 1
    assert f"name: {place} is no folder, but outputs/x/vanilla-vanilla/seed-" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


@pytest.mark.slow
def test_a_named_study_needs_no_flag_and_may_be_changed(train: Train, tmp_path: Path) -> None:
    done = train("experiment=five_seeds", "encoder=vanilla", "seed=3,4", *SMALL)
    assert done.returncode == 0, done.stderr
    suffix = "__latent.dim-4__trainer-debug__trainer.threads-1"
    assert list(results_under(tmp_path / "outputs/five_seeds")) == [
        f"vanilla-{decoder}{suffix}/seed-{seed}" for decoder in ("encdec", "vanilla") for seed in (3, 4)
    ]


def test_values_that_an_experiment_sets_name_the_cell_but_its_own_name_does_not(train: Train, tmp_path: Path) -> None:
    (tmp_path / "my_conf/experiment").mkdir(parents=True)
    (tmp_path / "my_conf/experiment/mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /encoder: encdec}, {override /trainer: debug}]\n"
        "name: my_study\n"
        "latent: {dim: 4}\n"
        "trainer: {threads: 1}\n"
    )
    done = train("--config-dir", "my_conf", "experiment=mine", "latent.dim=5")
    assert done.returncode == 0, done.stderr
    (folder,) = results_under(tmp_path / "outputs/my_study")
    assert folder == "encdec-vanilla__latent.dim-5__trainer-debug__trainer.threads-1/seed-0"


@pytest.mark.slow
def test_a_report_is_written_again_by_its_own_command(train: Train, tmp_path: Path) -> None:
    write_run(tmp_path / "outputs/x")
    script = [sys.executable, str(ROOT / "scripts/report.py")]
    done = subprocess.run([*script, "outputs/x"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Report: outputs/x/report/report.html" in done.stdout
    assert (tmp_path / "outputs/x/report/report.html").is_file()
    for words, told in ((["outputs/y"], "there is no folder outputs/y"), (["outputs/x/report"], "there are no runs")):
        wrong = subprocess.run([*script, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert wrong.returncode == 1
        assert told in wrong.stderr
        assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Late(torch.nn.Module):\n"
        "    steps = 0\n"
        "    def forward(self, x):\n"
        "        self.steps += self.training\n"
        "        if self.steps > 2: raise RuntimeError('out of luck')\n"
        "        return x\n"
    )
    write(tmp_path / "my_conf/encoder/late.yaml", {"blocks": [{"down": 4}, {"_target_": "mine.Late"}]})
    done = train("--config-dir", "my_conf", "-m", "encoder=late,vanilla", "seed=0,1", *SMALL, "name=study")
    assert done.returncode == 1
    found = results_under(tmp_path / "outputs" / "study")
    assert [result["status"] for result in found.values()] == ["failed", "failed", "finished", "finished"]
    assert [result["seed"] for result in found.values()] == [0, 1, 0, 1]
    assert "Failed runs" in done.stdout
    assert done.stdout.count("RuntimeError: out of luck") >= 2
    assert "Traceback" not in done.stderr + done.stdout
    assert "out of luck" in (tmp_path / "outputs/study" / next(iter(found)) / "traceback.txt").read_text()


def test_yaml_and_classes_in_the_folder_of_a_user_are_found(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Module):\n"
        "    def __init__(self, image_shape, num_parameters, width):\n"
        "        super().__init__()\n"
        "        pixels = image_shape[0] * image_shape[1] * image_shape[2]\n"
        "        hidden, head = nn.Linear(pixels, width), nn.Linear(width, num_parameters)\n"
        "        self.layers = nn.Sequential(nn.Flatten(), hidden, head)\n"
        "    def forward(self, images):\n"
        "        return self.layers(images)\n"
    )
    write(tmp_path / "my_conf/encoder/flat.yaml", {"_target_": "mine.Flat", "width": 8})
    done = train("--config-dir", "my_conf", "encoder=flat", *SMALL, "name=mine", "seed=7")
    assert done.returncode == 0, done.stderr
    (result,) = results_under(tmp_path / "outputs" / "mine").values()
    assert (result["encoder"], result["decoder"], result["seed"]) == ("flat", "vanilla", 7)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encoder=vanila"], "encoder: there is no choice 'vanila'; did you mean 'vanilla'? known: attention,"),
        (["-m", "encoder=vanilla,vanila"], "encoder: there is no choice 'vanila'"),
        (["trainer.max_epochs=ten"], "trainer.max_epochs: must be a whole number, but is 'ten'"),
        (["lr=0.1"], "lr: no such key (lr=0.1); did you mean optimizer.lr=0.1?"),
        (["--nonsense"], "there is no flag --nonsense"),
        (["latent=map", "latent.dim=4"], "no such key (latent.dim=4); did you mean latent=vector latent.dim=4?"),
        (["latent.shape=[4,7,7]"], "or latent=map latent.shape=[4,7,7]?"),
        (["prior.components=3"], "mean prior=hierarchical prior.components=3 or prior=mixture prior.components=3 or "),
        (["latent.dims=64"], "latent.dims: no such key (latent.dims=64); did you mean 'dim'?"),
        (["latent.dim=0"], "latent.dim: must be at least 1, but is 0"),
        (["-m", "latent.dim=16,0", "seed=0,1"], "latent.dim: must be at least 1, but is 0 (with latent.dim=0 seed=0)"),
        (["seed=-1"], "seed: must be at least 0, but is -1"),
        (["name=../x"], "name: must be one folder name"),
        (["-m", "name=../x", "seed=0,1"], "name: must be one folder name"),
        (["data.num_train=4000"], "but is 4,000 + 1,000"),
        (["-m", "latent.dim=16,16"], "two runs would share the folder"),
        (["latent.dim=["], "'latent.dim=[' is not of the form key=value"),
        (["encoder=null"], "Config group override must be a string"),
        (
            ["--config-dir", "nowhere"],
            "--config-dir: nowhere: there is no such folder; a folder with <group>/<name>.yaml",
        ),
        (["hydra.run.dir=."], "hydra.run.dir: must make a folder that ends in <name>/<cell>/seed-<n>"),
        (["-m", "hydra.sweep.dir=runs", "seed=0,1"], "hydra.sweep.dir: must make a folder that ends in"),
        (["-m", "name=a,b"], "name: must be one for the whole sweep, but is a, b"),
        (["-m", "data.subset=glob(*)"], "the sweep has no run: a glob or a range in it stands for nothing"),
        (["~hydra.callbacks.vae_lab"], "hydra.callbacks.vae_lab: must stay as it is"),
    ],
)
def test_configuration_errors_come_at_once_and_leave_nothing(
    train: Train, tmp_path: Path, words: list[str], told: str
) -> None:
    done = train(*words, torch=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encoder.blocks=[{down:4},{down:4},{down:4},{down:4},{down:4},{down:4}]"], "encoder.blocks[5]"),
        (
            ["-m", "encoder=vanilla,encdec", "decoder.blocks=[{up:4}]"],
            "decoder.blocks[0] of vanilla.yaml: 'up' works on",
        ),
        (["optimizer._target_=torch.optim.Adamm"], "optimizer._target_: must name something that can be imported"),
        (["data=fashion_mnist", "data.root=/nowhere"], "data: there is no folder /nowhere"),
        (["data.dataset=foo.Bar"], "data: cannot be read (ModuleNotFoundError: No module named 'foo')"),
        (["data.train_images=5000"], "mend data.image_shape, data.train_images"),
    ],
)
def test_errors_that_need_torch_leave_nothing_either(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    told: str,
) -> None:
    """In this process, which has imported torch already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # which the command sets for its process
    with pytest.raises(SystemExit) as ending:
        main(["train", *words])
    assert ending.value.code == 1
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_yaml_file_that_is_not_text_is_named(train: Train, tmp_path: Path) -> None:
    (tmp_path / "my_conf/encoder").mkdir(parents=True)
    (tmp_path / "my_conf/encoder/odd.yaml").write_bytes(b"blocks: [{down: 4}] # \xff")
    done = train("--config-dir", "my_conf", "encoder=odd", torch=False)
    assert done.returncode == 1
    assert "my_conf/encoder/odd.yaml: this is not YAML: it is not text in UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_blocks_that_do_not_fit_are_reported_at_once(train: Train, tmp_path: Path) -> None:
    write(tmp_path / "my_conf/encoder/a.yaml", {"blocks": [{"dense": 4}, {"down": 4}]})
    write(tmp_path / "my_conf/encoder/b.yaml", {"blocks": [{"unflatten": 4}]})
    done = train("--config-dir", "my_conf", "-m", "encoder=a,b", "seed=0,1")
    assert done.returncode == 1
    assert "2 problems" in done.stderr
    assert "encoder.blocks[1] of a.yaml" in done.stderr
    assert "encoder.blocks[0] of b.yaml" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["seed=0"], ["-m", "seed=0,1"]])
def test_files_that_cannot_be_written_are_reported_and_other_runs_continue(
    train: Train, tmp_path: Path, mode: list[str]
) -> None:
    cell = "vanilla-vanilla__latent.dim-4__trainer-debug__trainer.threads-1"
    (tmp_path / "outputs/x" / cell / "seed-0" / "result.json").mkdir(parents=True)
    done = train(*mode, *SMALL, "name=x")
    assert done.returncode == 1
    assert "IsADirectoryError" in done.stdout
    assert "left no result.json" in done.stdout
    assert "Traceback" not in done.stderr
    assert len(results_under(tmp_path / "outputs/x" / cell / "seed-1")) == len(mode) - 1


@pytest.mark.slow
def test_a_failure_that_cannot_be_printed_still_exits_with_1(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    steps = 0\n"
        "    def forward(self, x):\n"
        "        self.steps += self.training\n"
        "        if self.steps > 2: raise RuntimeError('[/bold] [/tmp/x] β')\n"
        "        return x\n"
    )
    done = train("encoder.blocks=[{down:4},{_target_:mine.Odd}]", *SMALL, "name=x", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert "[/bold] [/tmp/x] ?" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_job_may_change_its_folder(train: Train, tmp_path: Path) -> None:
    done = train(*SMALL, "name=x", "hydra.job.chdir=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(results_under(tmp_path / "outputs/x")) == 1
    assert not list((tmp_path / "outputs").rglob("outputs"))


def test_words_that_the_parser_of_hydra_refuses_exit_with_2(train: Train) -> None:
    assert train("--cfg", "nothing").returncode == 2


def test_damaged_files_in_the_package_are_reported(train: Train, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "vae_lab/assets/fashion_mnist_3k", tmp_path / "set")
    file = tmp_path / "set/FashionMNIST/raw/train-images-idx3-ubyte"
    os.truncate(file, 1000)
    done = train(f"data.root={tmp_path / 'set'}")
    assert done.returncode == 1
    assert f"{file}: the file is damaged" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_broken_pair_of_torch_and_torchvision_is_reported_in_one_sentence(train: Train, tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    done = train("name=x", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert (
        "do not load together (operator torchvision::nms does not exist); install a pair from one source" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_help_lists_groups_and_values_without_torch(train: Train) -> None:
    done = train("--help", torch=False)
    assert done.returncode == 0
    for words in ("encoder: attention, conv_1024", "latent.dim=N", "tensorboard --logdir outputs", "trainer.threads=N"):
        assert words in done.stdout


def test_vae_lab_without_a_command_and_with_a_wrong_one() -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from vae_lab.cli import main; main()", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "vae-lab train" in call().stdout
    wrong = call("trian")
    assert (wrong.returncode, "no command 'trian'" in wrong.stderr) == (2, True)
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", call("--version").stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="needs a pseudo-terminal")
def test_on_a_terminal_the_bar_moves_and_ctrl_c_prints_how_to_resume(train: Train, tmp_path: Path) -> None:
    import pty  # not on Windows

    words = ("-m", "seed=0,1", "latent.dim=4", "data.num_train=1000", "trainer.threads=1", "trainer.max_epochs=500")
    pid, screen = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job, such as these tests, ignores it
        os.chdir(tmp_path)
        os.environ["COLUMNS"] = "120"
        os.execv(sys.executable, [sys.executable, str(ROOT / "train.py"), *words])
    shown = b""
    deadline = time.monotonic() + 120
    while b"epoch 3/500" not in shown and time.monotonic() < deadline:
        shown += os.read(screen, 4096)
    os.write(screen, b"\x03")
    while True:
        try:
            piece = os.read(screen, 4096)
        except OSError:  # Linux ends a pseudo-terminal so
            break
        if not piece:
            break
        shown += piece
    _, status = os.waitpid(pid, 0)
    text = shown.decode(errors="replace")
    assert "KL 0." in text
    assert os.waitstatus_to_exitcode(status) == 130
    assert "Traceback" not in text
    cell = "vanilla-vanilla__data.num_train-1000__latent.dim-4__trainer.max_epochs-500__trainer.threads-1"
    told = re.search(rf"Stopped by SIGINT.*, of {cell}/seed-0, the first (\d+) of 500 epochs. To go on:\s+(.+)", text)
    assert told is not None, text
    assert int(told[1]) >= 2
    name = re.search(r"name=\S+", told[2])
    assert name is not None
    assert not list((tmp_path / "outputs").rglob("result.json"))
    assert not list((tmp_path / "outputs").rglob("seed-1"))
    # The name, which nobody had given, is in the command: the same run goes on, and SIGTERM ends it likewise.
    command = [sys.executable, str(ROOT / "train.py"), *words, name[0]]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as again:
        history = next((tmp_path / "outputs").rglob("seed-0")) / "history.csv"
        while not history.exists() or f"\n{int(told[1]) + 2},train" not in history.read_text():
            assert again.poll() is None
            time.sleep(0.1)
        again.send_signal(signal.SIGTERM)
        _, complaint = again.communicate()
    assert again.returncode == 143
    assert "Stopped by SIGTERM" in complaint
    assert "Traceback" not in complaint


@pytest.mark.slow
def test_an_installed_package_trains_from_any_folder(tmp_path: Path) -> None:
    """The wheel holds conf/, the data and the command; nothing of the checkout is on the path."""
    source, site, work = tmp_path / "source", tmp_path / "site", tmp_path / "work"
    for folder in ("vae_lab", "conf"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    work.mkdir()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--disable-pip-version-check", "--target", str(site), str(source)], check=True)
    shutil.rmtree(source)
    write(work / "my_conf/encoder/mine.yaml", {"blocks": [{"down": 4}, {"dense": 8}]})
    script = site / "bin" / "vae-lab"
    done = subprocess.run(
        [sys.executable, str(script), "train", "--config-dir", "my_conf", "encoder=mine", *SMALL, "name=x"],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (result,) = results_under(work / "outputs").values()
    assert result["status"] == "finished"
    assert result["environment"]["commit"] is None
    assert str(ROOT) not in next((work / "outputs").rglob("config.yaml")).read_text()
