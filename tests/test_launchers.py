"""Every engine gives the serial sweep's results, table of failures and exit code; what is not chosen is not loaded."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose
from lightning.pytorch import LightningModule, Trainer
from omegaconf import OmegaConf

from vae_lab.config import ConfigError, Inherited, Position
from vae_lab.sweep import callback, launchers
from vae_lab.sweep.launchers import Surroundings, Taken, prepare
from vae_lab.training.callbacks import Progress

ROOT = Path(__file__).parents[1]
SMALL = (
    "latent.dim=4", "data.num_train=100", "data.num_val=20", "data.num_test=20", "data.batch_size=20",
    "trainer.max_epochs=2", "trainer.threads=1", "callbacks=quiet", "metrics.frechet=false",
)  # fmt: skip
# The published grid; a third decoder's loss overflows after some steps.
GRID = ("encoder=vanilla,encdec", "decoder=vanilla,encdec,explodes")
PART = ("encoder=vanilla", "decoder=vanilla,explodes")
ENGINES = {
    "local": ("hydra/launcher=local", *PART),
    "submitit": ("hydra/launcher=submitit_local", *PART),
    "ray": ("hydra/launcher=ray", *GRID),
}
Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`python train.py …` in a folder with a decoder of its own."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "mine" / "decoder").mkdir(parents=True)
    (folder / "mine" / "decoder" / "explodes.yaml").write_text(
        "blocks: [{unflatten: 4}, {up: 4}, {_target_: theirs.Exploding}, {up: 4}]\n"
    )
    (folder / "theirs.py").write_text(
        "from torch import nn\nclass Exploding(nn.Module):\n    steps = 0\n    def forward(self, x):\n"
        "        self.steps += self.training\n        return x * 1e30 * 1e30 if self.steps > 3 else x\n"
    )

    def call(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "train.py"), *words, "--config-dir", "mine"]
        return subprocess.run(
            command, cwd=folder, env=environment(**variables), capture_output=True, text=True, check=False
        )

    call.folder = folder  # type: ignore[attr-defined]
    return call


def environment(**variables: str) -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "COLUMNS": "100"}
    return os.environ | quiet | variables


def found(train: Train, name: str) -> dict[str, dict[str, Any]]:
    """What the runs of a sweep recorded, but for what differs from one time to the next."""
    place: Path = train.folder / "outputs" / name  # type: ignore[attr-defined]
    every = {}
    for path in sorted(place.rglob("result.json")):
        whole = json.loads(path.read_text())
        kept = ("status", "error", "cell", "seed", "config_sha256", "train", "val", "test", "model",
                "environment")  # fmt: skip
        whole["environment"]["commit"] = None  # that of a checkout which is worked at
        weights = {"weights": whole["files"].get("model.safetensors")}
        every[str(path.parent.relative_to(place))] = {key: whole[key] for key in kept} | weights
    return every


def failures(printed: str, name: str) -> str:
    """The table of failures of a sweep, without its name."""
    table = printed[printed.index("Failed runs") :].replace(name, "NAME")
    return "\n".join(
        line for line in table.splitlines() if "(_run_job" not in line
    )  # Ray prints when it gets round to it


@pytest.fixture(scope="module")
def serial(train: Train) -> tuple[dict[str, dict[str, Any]], str]:
    done = train("-m", *GRID, *SMALL, "name=on_one")
    assert done.returncode == 1
    every = found(train, "on_one")
    assert [one["status"] for one in every.values()].count("failed") == 2
    assert [one["status"] for one in every.values()].count("finished") == 4
    return every, failures(done.stdout, "on_one")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "submitit", "ray"])
def test_every_launcher_gives_the_same_results(
    train: Train, serial: tuple[dict[str, dict[str, Any]], str], engine: str
) -> None:
    every, table = serial
    name = f"on_{engine[:3]}"
    words = ("-m", *ENGINES[engine], *SMALL, f"name={name}")
    with cluster() if engine == "ray" else nothing() as more:
        ended = train(*words, *more)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    there = found(train, name)
    assert there == {run: every[run] for run in there}
    assert len(there) == (6 if engine == "ray" else 2)
    assert "Report: outputs/" in ended.stdout
    if engine == "ray":
        assert failures(ended.stdout, name) == table
    else:  # of which these are a part
        assert {*failures(ended.stdout, name).splitlines()} <= {*table.splitlines()}
    if engine == "local":  # the same name goes on: what has finished is kept, what has failed is done again
        folder: Path = train.folder  # type: ignore[attr-defined]
        (kept,) = folder.glob(f"outputs/{name}/vanilla-vanilla*/*/result.json")
        before = kept.stat().st_mtime_ns
        again = train(*words)
        assert again.returncode == 1
        assert "1 finished, 1 to do again" in again.stdout
        assert kept.stat().st_mtime_ns == before
        assert failures(again.stdout, name) == failures(ended.stdout, name)


class nothing:  # noqa: N801
    """No cluster."""

    def __enter__(self) -> tuple[str, ...]:
        return ()

    def __exit__(self, *error: object) -> None:
        pass


class cluster:  # noqa: N801
    """A Ray cluster of two nodes with a core each, so that two runs are trained at once, one on each."""

    def __enter__(self) -> tuple[str, ...]:
        ray_cluster = pytest.importorskip("ray.cluster_utils")
        self.cluster = ray_cluster.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.cluster.add_node(num_cpus=1)
        return (f"hydra.launcher.ray.init.address='{self.cluster.address}'",)

    def __exit__(self, *error: object) -> None:
        self.cluster.shutdown()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_sweep_in_a_sentence(train: Train) -> None:
    folder: Path = train.folder  # type: ignore[attr-defined]
    (folder / "deadly.py").write_text(
        "import multiprocessing, os, signal\nfrom torch import nn\nclass Deadly(nn.Module):\n"
        "    def forward(self, x):\n"
        "        if multiprocessing.current_process().name != 'MainProcess':\n"  # which tries one step before
        "            os.kill(os.getpid(), signal.SIGKILL)\n        return x\n"
    )
    (folder / "mine" / "encoder").mkdir(exist_ok=True)
    (folder / "mine" / "encoder" / "deadly.yaml").write_text("blocks: [{down: 4}, {_target_: deadly.Deadly}]\n")
    words = ("-m", "encoder=vanilla,deadly", *SMALL, "hydra/launcher=local", "name=mortal")
    ended = train(*words, COLUMNS="200")
    assert ended.returncode == 1
    reason = "a process was killed by SIGKILL (as by a system that is short of memory"
    assert f"Stopped by the launcher local: {reason}" in ended.stderr
    assert ended.stderr.rstrip().endswith("The same command with the same name goes on.")
    table = " ".join(failures(ended.stdout, "mortal").split())
    assert "deadly-vanilla" in table
    assert f"ended with its process: {reason}" in table


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX")
def test_ctrl_c_ends_the_processes_too_and_the_same_command_goes_on(train: Train) -> None:
    folder: Path = train.folder  # type: ignore[attr-defined]
    words = ("-m", *SMALL, "seed=0,1", "trainer.max_epochs=2000", "hydra/launcher=local", "name=stopped")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    place = folder / "outputs" / "stopped"
    until = time.monotonic() + 100
    while not list(place.glob("*/*/checkpoints/last.ckpt")) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Stopped by SIGINT" in errors
    assert "Traceback" not in errors
    assert members(process.pid) == set()
    assert not list(place.glob("*/*/result.json"))


def members(group: int) -> set[int]:
    """The processes of a group that go on living."""
    until = time.monotonic() + 60
    alive = {group}
    while alive and time.monotonic() < until:
        listed = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listed.splitlines()[1:]]
        alive = {int(pid) for pid, of, state in rows if int(of) == group and not state.startswith("Z")}
        time.sleep(0.1)
    return alive


def test_runs_in_other_processes_use_the_settings_of_the_machine_that_started_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Inherited, "here", Inherited(cores=64, precision="bf16-mixed", runs=9))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ours = callback.SweepCallback()
    ours.runs = ["too much to be sent with each run"]  # type: ignore[list-item]
    sent = pickle.dumps(ours)
    code = (
        "import pickle, sys, os, signal; from vae_lab import config; callback = pickle.load(sys.stdin.buffer); "
        "print(config.cores(), config.precision(), config.Inherited.here.runs, os.getcwd(), callback.runs, "
        "signal.getsignal(signal.SIGINT) is signal.SIG_IGN, sys.path[-1] if sys.argv[1] in sys.path else '')"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], input=sent, capture_output=True, check=True, cwd="/"
    )
    words = told.stdout.decode().split()
    assert words[:6] == ["64", "bf16-mixed", "9", str(tmp_path), "[]", "True"]
    assert len(words) == 7


def test_workers_show_no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inherited, "here", Inherited(is_worker=True))
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar, model = Progress(), LightningModule()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    bar.on_train_start(trainer, model)
    assert bar._bar is None
    monkeypatch.setattr(Inherited, "here", Inherited())
    trainer.fit_loop.max_batches = 3
    bar.on_train_start(trainer, model)
    assert bar._bar is not None
    bar.on_train_end(trainer, model)


@pytest.fixture
def with_cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda count: monkeypatch.setattr(Inherited, "here", Inherited(cores=count))


@pytest.mark.parametrize(
    ("words", "cores", "n_jobs", "told"),
    [
        (["trainer.threads=2"], 8, 4, "4 runs at once, each with 2 of 8 cores."),
        (["trainer.threads=8"], 8, 1, "one run at a time, each with 8 of 8 cores; trainer.threads=1 would run more"),
        (["trainer.threads=1"], 1, 1, "one run at a time, each with 1 of 1 cores."),
        (["trainer=ddp", "trainer.devices=2", "trainer.threads=2"], 8, 2, "2 runs at once, each with 4 of 8 cores."),
    ],
)
def test_local_runs_as_many_as_the_cores_hold(
    run_of: Compose, with_cores: Callable[[int], None], words: list[str], cores: int, n_jobs: int, told: str
) -> None:
    with_cores(cores)
    node = OmegaConf.create(
        {"runtime": {"choices": {"hydra/launcher": "local"}}, "launcher": {"n_jobs": "${vae_lab.at_once:}"}}
    )
    sentence = launchers.fit(node, Taken.by([run_of(*words)]))
    assert sentence.startswith(f"Launcher local: {told}")
    assert node.launcher.n_jobs == n_jobs


def test_ray_and_slurm_get_the_cores_and_gpus_of_a_run(run_of: Compose, with_cores: Callable[[int], None]) -> None:
    with_cores(8)
    taken = Taken.by([run_of("trainer.threads=3"), run_of("trainer.threads=1")])
    assert taken == Taken(cores=3, gpus=0)
    assert Taken.by([run_of("trainer=gpu", "trainer.threads=2")]) == Taken(cores=2, gpus=1)
    node = OmegaConf.create(
        {
            "runtime": {"choices": {"hydra/launcher": "ray"}},
            "launcher": {"ray": {"init": {}, "remote": {"num_gpus": 0.5}}},
        }
    )
    assert launchers.fit(node, taken) == "Launcher ray: each run takes 3 cores (trainer.threads)."
    assert node.launcher.ray.remote == {"num_cpus": 3, "num_gpus": 0.5}
    preset = OmegaConf.load(ROOT / "conf/hydra/launcher/slurm.yaml")
    assert (preset.cpus_per_task, preset.gpus_per_node) == (3, None)
    Taken(cores=4, gpus=2).tell()
    assert (preset.cpus_per_task, preset.gpus_per_node) == (4, 2)


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["--help"], ""),
        (["hydra/launcher=local", "--cfg", "job"], "hydra_joblib_launcher"),
        (["hydra/launcher=slurm", "--cfg", "job"], "hydra_submitit_launcher"),
    ],
)
def test_plugins_load_when_chosen(words: list[str], loaded: str) -> None:
    code = (
        "import sys; from vae_lab.cli import main\ntry: main(['train', *sys.argv[1:]])\nexcept SystemExit: pass\n"
        "names = [name for name in sys.modules if name.startswith('hydra_plugins.') and name.count('.') > 1]\n"
        "print('loaded:', *sorted({name.split('.')[1] for name in names}))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == f"loaded: {loaded}".strip()


def test_a_missing_plugin_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "_installed", lambda plugin: False)
    with pytest.raises(ConfigError, match=r"local needs the package hydra-joblib-launcher.*'vae-lab\[local\]'"):
        prepare(["-m", "hydra/launcher=local"])


@pytest.mark.slow
def test_mistakes_are_reported_in_one_sentence(train: Train) -> None:
    wrong = train("-m", "seed=0,1", "hydra/launcher=loca")
    assert wrong.returncode == 1
    assert "hydra/launcher: there is no choice 'loca'; did you mean 'local'?" in wrong.stderr
    assert "ray" in wrong.stderr
    no_cluster = train("-m", "seed=0,1", *SMALL, "hydra/launcher=slurm", "name=no_cluster", PATH=os.defpath)
    assert no_cluster.returncode == 1
    assert 'Stopped by the launcher slurm: RuntimeError: Could not detect "srun"' in no_cluster.stderr
    assert no_cluster.stderr.rstrip().endswith("Nothing was run.")
    assert "Traceback" not in no_cluster.stderr


def test_surroundings_are_read_when_a_run_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Surroundings().folder == str(tmp_path)
    assert Surroundings().inherited.runs == 1


def test_variables_of_other_processes_change_nothing(run_of: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_of("name=x").config
    for name in ("CORES", "PRECISION", "SWEEP_RUNS", "SWEEP_POSITION", "WORKER", "CORES_OF_A_RUN", "GPUS_OF_A_RUN"):
        monkeypatch.setenv(f"VAE_LAB_{name}", "3")
    assert run_of("name=x").config == before
    assert Position.current() is None
