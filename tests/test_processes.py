"""One run over several processes ends as it does with one, whatever becomes of the processes."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, shipped_choices
from lightning.pytorch import Callback
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from vae_lab import config, results
from vae_lab.compat import Steps
from vae_lab.config import ConfigError
from vae_lab.data import shards
from vae_lab.data.shards import Part
from vae_lab.model import vae
from vae_lab.training import runner
from vae_lab.training.module import Average, LitVAE

# Without batch normalisation. Batches of 20 and one of a single image, so that a process has none; as in validation.
SMALL = (
    "latent.dim=8", "data.num_train=101", "data.num_val=1", "data.num_test=131", "data.batch_size=20",
    "trainer.max_epochs=3", "trainer.threads=1", "trainer.precision=32-true", "metrics.frechet=false",
    "encoder.normalization=none", "decoder.normalization=none", "encoder.blocks=[{down:4},{down:8}]",
    "decoder.blocks=[{unflatten:8},{up:4},{up:4}]", "scheduler=constant",
)  # fmt: skip
TOLERANCE = 1e-5
"""Of losses and weights, relative to the largest: sums in 32 bits are taken in another order."""
HERE = str(Path(__file__).parent)


class Exploding(nn.Module):
    """Makes the loss infinite, in the second process alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e38 if shards.mine().rank == 1 else x


class Ending(Callback):
    """Ends a process of the group, or the one that started it, in the second epoch; notes which there were."""

    def __init__(self, rank: int, folder: str, whom: str = "itself") -> None:
        self.rank, self.folder, self.whom = rank, Path(folder), whom

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1:  # not in the trial before the run
            (self.folder / str(os.getpid())).touch()
        if trainer.current_epoch == 1:
            trainer.strategy.barrier()  # all have noted themselves
            if trainer.global_rank == self.rank:
                os.kill(os.getpid() if self.whom == "itself" else os.getppid(), signal.SIGKILL)
            time.sleep(60)


class Waiting(Callback):
    """Waits to be ended in the second epoch."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            (self.folder / str(os.getpid())).touch()
            time.sleep(60)


class LongWay(Callback):
    """Fails where a step goes the shorter way, which knows one process only."""

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        assert isinstance(loop, Steps)
        assert not loop._short


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    folder = tmp_path / "pids"
    folder.mkdir()
    return folder


def gone(folder: Path) -> bool:
    """Whether the processes that noted themselves have ended."""

    def is_running(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    pids = [path.name for path in folder.iterdir()]
    assert len(pids) == 2
    latest = time.monotonic() + 600
    while any(map(is_running, pids)) and time.monotonic() < latest:
        time.sleep(0.1)
    return not any(map(is_running, pids))


def command(*words: str) -> list[str]:
    return [sys.executable, str(Path(HERE).parent / "train.py"), *words]


def history_of(folder: Path) -> list[list[float]]:
    with open(folder / "history.csv", newline="") as file:
        return [[float(row[term]) for term in ("total", "reconstruction", "kl")] for row in csv.DictReader(file)]


def assert_close(one: Path, other: Path, tolerance: float = TOLERANCE) -> None:
    assert np.array(history_of(one)) == pytest.approx(np.array(history_of(other)), rel=tolerance)
    weights, there = (load_file(folder / results.WEIGHTS) for folder in (one, other))
    assert weights.keys() == there.keys()
    for name, value in weights.items():
        assert (value - there[name]).abs().max() <= tolerance * there[name].abs().max(), name


# --- Without processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [1, 2, 3, 5, 20, 21])
def test_parts_make_the_batch_and_weigh_as_much_as_their_images(processes: int, images: int) -> None:
    parts = [Part(rank, processes) for rank in range(processes)]
    rows = torch.cat([torch.arange(images)[part.rows(images)] for part in parts])
    assert rows.tolist() == list(range(images))
    sizes = [len(range(images)[part.rows(images)]) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)
    assert [part.weight(images) * images / processes for part in parts] == pytest.approx(sizes)
    assert all(len(range(images)[part.taken(images)]) == max(1, size) for part, size in zip(parts, sizes, strict=True))


def folder_of_images(root: Path) -> Path:
    root.mkdir()
    random = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / f"{number:02}.png")
    return root


STREAMED = ("data=image_folder", "data.image_shape=[1,8,8]", "data.num_train=45", "data.num_val=5", "data.num_test=5",
            "data.workers=0", "data.in_memory=false", "data.batch_size=20")  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        (),
        STREAMED,
        (
            "data._target_=test_checkpoints.Shuffled",
            *(f"~data.{key}" for key in ("dataset", "root", "train_images", "test_images", "num_val", "num_test")),
            *(f"~data.{key}" for key in ("subset", "subset_seed", "binarize", "binarize_seed")),
        ),
    ],
    ids=["memory", "streamed", "foreign"],
)
@pytest.mark.parametrize("processes", [2, 3])
def test_mean_gradients_and_losses_are_those_of_the_whole_batch(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: Sequence[str], processes: int
) -> None:
    root = (f"data.root={folder_of_images(tmp_path / 'images')}",) if words == STREAMED else ()
    settings = run_of(*SMALL, *words, *root).config

    def steps(part: Part) -> tuple[list[list[Tensor]], Average]:
        """The gradients of each step of an epoch, as one process has them."""
        monkeypatch.setattr(shards, "mine", lambda: part)
        monkeypatch.setattr("vae_lab.data.batches.mine", lambda: part)
        torch.manual_seed(0)
        module = LitVAE(vae.build(settings), config.build(settings.objective), config.build(settings.optimizer))
        monkeypatch.setattr(shards, "mine", lambda: shards.WHOLE)  # nobody else is there to be talked to
        data = config.build(settings.data)
        if hasattr(data, "setup"):
            data.setup("fit")
        loader = data.train_dataloader()
        module._trainer = SimpleNamespace(  # type: ignore[assignment]
            train_dataloader=loader,
            num_training_batches=10**6,
            current_epoch=4,
            max_epochs=10,
            max_steps=-1,
            state=None,
        )
        module.on_train_epoch_start()
        found = []
        for number, batch in enumerate(loader):
            module.zero_grad()
            module.training_step(batch, number).backward()
            found.append([weight.grad.clone() for weight in module.parameters() if weight.grad is not None])
        return found, module.averages["train"]

    whole, average = steps(shards.WHOLE)
    every = [steps(Part(rank, processes)) for rank in range(processes)]
    assert len(whole) > 2
    for number, gradients in enumerate(whole):
        for index, gradient in enumerate(gradients):
            mean = sum(found[number][index] for found, _ in every) / processes
            torch.testing.assert_close(mean, gradient, rtol=5e-4, atol=5e-6 * float(gradient.abs().max()) + 1e-8)
    assert sum(part.images for _, part in every) == average.images
    for term, value in average.value().items():
        parts = [part.value()[term] * part.images for _, part in every if part.images]
        assert sum(parts) / average.images == pytest.approx(value, rel=1e-6)


FITTING: dict[str, dict[str, tuple[str, ...] | None]] = {
    "posterior": {"point": ("objective=rae",), "vq": None, "fsq": None, "lfq": None},
    "prior": {"vamp_500": None, "hierarchical_vamp": ("posterior=hierarchical",), "codes": None},
    "likelihood": {"bernoulli": ("data.binarize=static",)},
    "objective": {"rae": ("posterior=point",)},
}
"""Group → choice → what it needs; None for one that is tested as another one, or is chosen by a `latent`."""


def parts_of_models() -> list[tuple[str, ...]]:
    return [
        (*(("objective=elbo",) if group != "objective" else ()), f"{group}={choice}", *needed)
        for group, needs in FITTING.items()
        for choice in shipped_choices(group)
        if (needed := needs.get(choice, ())) is not None
    ]


@pytest.mark.parametrize("words", parts_of_models(), ids=" ".join)
def test_every_part_trains_as_with_one_process_or_says_so(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: Sequence[str]
) -> None:
    settings = run_of(*SMALL, *words).config
    if not config.build(settings.objective).needs_whole_batch and not vae.build(settings).likelihood.needs_whole_batch:
        test_mean_gradients_and_losses_are_those_of_the_whole_batch(run_of, monkeypatch, tmp_path, words, 2)
        return
    monkeypatch.setattr(shards, "mine", lambda: Part(0, 2))
    (warning,) = shards.apart(nn.Identity(), normalizes=True, others=["objective"])
    assert "the objective looks at all images of a batch together" in warning


@pytest.mark.parametrize(
    ("words", "key", "text"),
    [
        (("trainer=ddp", "trainer.devices=21"), "trainer.devices", "must be at most the 20 images of a batch"),
        (("trainer=ddp", "trainer.devices=[0,1]"), "trainer.devices", "must be a number of processes on a CPU, but is"),
        (("trainer=ddp", "trainer.devices=0"), "trainer.devices", "must be a number of processes, 1 to 1023"),
        (("trainer=ddp", "trainer.strategy=fsdp"), "trainer.strategy", "must be one of ddp, "),
        (("trainer=ddp", "+trainer.num_nodes=2"), "trainer.num_nodes", "must be 1, but is 2: the processes of a run"),
        (("trainer=ddp", "+trainer.use_distributed_sampler=true"), "trainer.use_distributed_sampler", "is set by"),
        (("trainer=ddp", "+trainer.sync_batchnorm=true"), "trainer.sync_batchnorm", "must be false on a CPU"),
        (("trainer.devices=2",), "trainer.devices", "trainer=ddp trains a run in several processes"),
    ],
)
def test_settings_that_several_processes_cannot_have_are_refused(
    run_of: Compose, words: Sequence[str], key: str, text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(*SMALL, *words)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert text in caught.value.problems[0].text


def test_more_processes_than_cores_and_launchers_of_others_are_refused(
    run_of: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_of(*SMALL, "trainer=ddp", "trainer.threads=1").config
    monkeypatch.setattr("vae_lab.training.processes.cores", lambda: 1)
    with pytest.raises(ConfigError, match=r"trainer.devices: must be at most the 1 cores"):
        runner.check(settings)
    monkeypatch.setattr("vae_lab.training.processes.cores", lambda: 2)
    runner.check(settings)
    for name, value, starter in (("TORCHELASTIC_RUN_ID", "x", "torchrun"), ("SLURM_STEP_NUM_TASKS", "2", "srun")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ConfigError, match=f"itself, on one machine, but {starter} has started"):
                runner.check(settings)
            runner.check(run_of(*SMALL).config)


def test_a_process_with_one_image_is_refused_where_vectors_are_normalised(run_of: Compose) -> None:
    words = ("encoder.normalization=batch", "encoder.blocks=[{dense:8}]", "data.num_train=100", "trainer=ddp")
    vae.check_fit(run_of(*SMALL, *words).config)
    with pytest.raises(ConfigError, match="leaves a process with one image"):
        vae.check_fit(run_of(*SMALL, *words, "data.batch_size=3", "data.num_train=90").config)


def test_processes_set_threads_and_are_part_of_the_identity(run_of: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_lab.config.runs.cores", lambda: 8)
    config.register_resolvers()
    words = [word for word in SMALL if not word.startswith("trainer.threads")]
    threads = {n: run_of(*words, "trainer=ddp", f"trainer.devices={n}").config.trainer.threads for n in (1, 2, 3, 20)}
    assert threads == {1: 8, 2: 4, 3: 2, 20: 1}
    one, two, unused = (
        run_of(*SMALL, "trainer=ddp", *more).config.sha256()
        for more in (("trainer.devices=1",), (), ("trainer.strategy=ddp_find_unused_parameters_true",))
    )
    assert one == run_of(*SMALL).config.sha256() != two == unused
    gpus = [run_of(*SMALL, "trainer=ddp", "trainer.accelerator=gpu", f"trainer.devices={which}").config.sha256()
            for which in ("2", "[0,1]", "[2,3]", "[0,1,2]")]  # fmt: skip
    assert gpus[0] == gpus[1] == gpus[2] != gpus[3]


def test_with_one_process_it_is_an_ordinary_run(run_of: Compose) -> None:
    alone = runner.run(run_of(*SMALL, "trainer=ddp", "trainer.devices=1", "name=alone"))
    assert alone.finished, alone.error
    assert alone.test == runner.run(run_of(*SMALL, "name=one")).test
    assert alone.environment.processes == 1


# --- With processes ----------------------------------------------------------------------------------------


@pytest.fixture
def undisturbed(run_of: Compose, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run in two processes that was left alone."""

    def of(*words: str) -> Path:
        run = run_of(*SMALL, "trainer=ddp", "name=whole", *words)
        result = runner.run(run)
        assert result.finished, result.error
        return run.directory

    return of


@pytest.mark.slow
def test_three_processes_match_one_and_write_every_file_once(run_of: Compose) -> None:
    one = run_of(*SMALL, "name=one")
    watched = f"+callbacks.way._target_={__name__}.LongWay"
    three = run_of(*SMALL, "trainer=ddp", "trainer.devices=3", "name=three", watched)
    alone, together = runner.run(one), runner.run(three)
    assert together.finished, together.error
    assert_close(three.directory, one.directory)
    for split in ("train", "val", "test"):
        for term in ("total", "reconstruction", "kl"):
            value = getattr(getattr(alone, split), term)
            assert getattr(getattr(together, split), term) == pytest.approx(value, rel=TOLERANCE)
    assert together.test.kl_per_dimension == pytest.approx(alone.test.kl_per_dimension, rel=1e-3)
    assert together.test.psnr == pytest.approx(alone.test.psnr, rel=TOLERANCE)
    assert (together.environment.processes, together.environment.threads) == (3, 1)
    assert len(together.timing.epoch_seconds) == 3
    # the first step apart, its images with it
    assert together.timing.images_per_second == pytest.approx((3 * 101 - 20) / (together.timing.train_seconds or 0))

    def names(folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix().split(".vm.")[0].split(".tfevents.")[0]
                      for path in folder.rglob("*") if path.is_file())  # fmt: skip

    assert names(three.directory) == names(one.directory)
    events, events_of_one = (EventAccumulator(str(run.directory)) for run in (three, one))
    events.Reload()
    events_of_one.Reload()
    assert events.Tags() == events_of_one.Tags()
    for tag in ("train/total", "val/total", "optimizer/gradient_norm"):
        seen, expected = ([(e.step, e.value) for e in found.Scalars(tag)] for found in (events, events_of_one))
        assert [step for step, _ in seen] == [1, 2, 3]
        assert [value for _, value in seen] == pytest.approx([value for _, value in expected], rel=1e-4)


@pytest.mark.slow
def test_in_64_bits_two_processes_match_one_to_the_last_digits(run_of: Compose) -> None:
    words = [*SMALL, "trainer.precision=64-true", "scheduler=one_cycle", "+trainer.gradient_clip_val=0.1"]
    runs = run_of(*words, "name=one"), run_of(*words, "trainer=ddp", "trainer.precision=64-true", "name=two")
    for run in runs:
        assert runner.run(run).finished
    assert_close(*(run.directory for run in runs), tolerance=1e-11)


@pytest.mark.slow
def test_killing_the_command_ends_its_processes_and_the_run_can_resume(
    undisturbed: Callable[..., Path], noted: Path
) -> None:
    words = ("-m", *SMALL, "trainer=ddp", "seed=0,1", "name=killed")
    callback = f"_target_:{__name__}.Ending,rank:0,folder:'{noted}',whom:starter,changes_results:false"
    target = f"+callbacks.ending={{{callback}}}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.run(command(*words, target), env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert gone(noted)
    done = subprocess.run(command(*words), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on after epoch 1 of 3" in done.stdout
    folders = sorted(Path("outputs/killed").glob("vanilla*/seed-*"))
    whole = undisturbed()
    assert [folder.name for folder in folders] == ["seed-0", "seed-1"]
    found = [results.read_result(folder) for folder in folders]
    assert [one.status for one in found if one] == ["finished"] * 2
    assert [one.resumed for one in found if one] == [[1], []]
    assert [one.position for one in found if one] == [1, 2]
    assert (folders[0] / results.WEIGHTS).read_bytes() == (whole / results.WEIGHTS).read_bytes()
    assert history_of(folders[0]) == history_of(whole)
    again = subprocess.run(command(*words), env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stdout.count("finished before, kept") == 2


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_and_says_so(run_of: Compose, noted: Path) -> None:
    run = run_of(*SMALL, "trainer=ddp", f"+callbacks.e={{_target_:{__name__}.Ending,rank:1,folder:'{noted}'}}")
    result = runner.run(run)
    assert result.status == "failed"
    assert (result.error or "").startswith("process 2 of 2 was killed by SIGKILL (as by a system")
    assert len(result.timing.epoch_seconds) == 1, "what it had done is recorded"
    assert result.train.total is not None
    assert gone(noted)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_all(run_of: Compose) -> None:
    block = f"encoder.blocks=[{{down:4}},{{_target_:{__name__}.Exploding}}]"
    result = runner.run(run_of(*SMALL, "trainer=ddp", block))
    assert result.status == "failed"
    assert (result.error or "").startswith("LossError: the train loss is not finite in step 1 (epoch 1, step 1 of 6)")
    assert "LossError" in (next(Path("outputs").glob("*/*/*")) / results.TRACEBACK).read_text()


@pytest.mark.slow
def test_a_signal_ends_all_processes(noted: Path, run_of: Compose) -> None:
    words = (*SMALL, "trainer=ddp", "name=stopped", f"+callbacks.w={{_target_:{__name__}.Waiting,folder:'{noted}'}}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        command(*words), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    latest = time.monotonic() + 600
    while len(list(noted.iterdir())) < 2 and process.poll() is None and time.monotonic() < latest:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in errors
    assert "the first 1 of 3 epochs" in errors
    assert gone(noted)
