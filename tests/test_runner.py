"""One run, from its configuration to its files."""

import csv
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from conftest import Compose
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from vae_lab import config, results
from vae_lab.model import vae, weights
from vae_lab.objectives.base import Objective
from vae_lab.training import runner
from vae_lab.training.module import LitVAE

SMALL = (
    "name=test", "latent.dim=8", "data.num_train=200", "data.num_val=40", "data.num_test=60", "trainer.max_epochs=2",
    "trainer.threads=1", "encoder.blocks=[{down:4},{down:8}]", "decoder.blocks=[{unflatten:8},{up:4},{up:4}]",
)  # fmt: skip


class Broken(nn.Module):
    """A user's block with a bug that only real data shows."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            raise ZeroDivisionError("a bug in a user's block")
        return x


class Exploding(nn.Module):
    """A block that makes the loss infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e38


class NoKl(Objective):
    """An objective that forgets a term."""

    units: ClassVar[dict[str, str]] = dict.fromkeys(("total", "reconstruction", "kl"), "squared error per pixel")
    is_likelihood_trained = False

    def __init__(self, *, beta: float) -> None:
        super().__init__()

    def forward(self, model: vae.VAE, images: Tensor, progress: float) -> dict[str, Tensor]:
        loss = (model(images).likelihood.mean - images).square().mean()
        return {"total": loss, "reconstruction": loss}


class NoUnit(NoKl):
    """An objective with a term whose unit it does not say."""

    def forward(self, model: vae.VAE, images: Tensor, progress: float) -> dict[str, Tensor]:
        losses = super().forward(model, images, progress)
        return losses | {"kl": losses["total"], "sparsity": losses["total"]}


def no_objective(*, beta: float) -> None:
    """A function that makes none."""


def test_a_seed_changes_only_what_it_varies(run_of: Compose) -> None:
    random = ("data.subset=random", "data.train_images=4000", *SMALL)

    def total(*overrides: str) -> float:
        found = runner.run(run_of(*random, *overrides)).test.total
        assert found is not None
        return found

    usual = total("seed=0", "data.subset_seed=0")
    sources = ("init", "order", "noise", "subset")
    assert {total("seed=0", f"vary={source}") for source in sources} == {usual}
    others = {total("seed=1", f"vary={source}") for source in sources}
    assert len(others | {usual}) == 5
    assert total("seed=1", "vary=[subset,init,order,noise]", "name=x") not in others


def test_the_terms_of_single_test_images_have_those_of_the_test_as_their_means(run_of: Compose) -> None:
    run = run_of(*SMALL)
    test, images = runner.run(run).test.model_dump(), results.read_test_images(run.directory)
    for name in ("total", "reconstruction", "kl", "elbo", "mse"):
        assert images[name].mean() == pytest.approx(test[name], rel=1e-5), name


def test_a_run_says_which_share_of_the_processors_it_had(run_of: Compose) -> None:
    timing = runner.run(run_of(*SMALL)).timing
    assert timing.cpu_share is not None
    assert 0 < timing.cpu_share <= 1


def test_a_run_leaves_the_files_that_are_promised(run_of: Compose) -> None:
    run = run_of(*SMALL, "seed=3")
    result = runner.run(run)
    folder = Path("outputs/test") / run.cell / "seed-3"
    assert result.finished
    assert {path.name for path in folder.iterdir()} >= {
        "config.yaml", "result.json", "history.csv", "checkpoints", "model.safetensors", "pictures.npz",
        "reconstructions.png", "samples.png", "test_images.npz",
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert list(folder.glob("events.out.tfevents.*"))
    assert not list(folder.glob("*.partial*"))

    loaded = json.loads((folder / "result.json").read_text())
    assert loaded["cell"].startswith("vanilla-vanilla__")
    assert (loaded["status"], loaded["error"], loaded["seed"]) == ("finished", None, 3)
    assert loaded["config_sha256"] == run.config.sha256()
    for split in ("train", "val", "test"):
        losses = loaded[split]
        assert losses["total"] == pytest.approx(losses["reconstruction"] + 0.01 * losses["kl"], rel=1e-5)
    model = vae.build(run.config)
    assert loaded["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert loaded["model"]["parameters"] == (
        loaded["model"]["encoder_parameters"] + loaded["model"]["decoder_parameters"]
    )
    assert loaded["model"]["flops_per_image"] > 0
    assert loaded["environment"]["threads"] == 1
    assert loaded["environment"]["torch"] == torch.__version__

    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "split", "total", "reconstruction", "kl", "seconds"]
    assert [(row["epoch"], row["split"]) for row in rows] == [
        ("1", "train"), ("1", "val"), ("2", "train"), ("2", "val"), ("2", "test"),
    ]  # fmt: skip
    for row in rows[2:]:
        assert float(row["total"]) == loaded[row["split"]]["total"]
    assert config.validate(yaml.safe_load((folder / "config.yaml").read_text())) == run.config


def test_tensorboard_has_every_split_and_epoch_the_timing_and_a_picture(run_of: Compose) -> None:
    run = run_of(*SMALL)
    result = runner.run(run)
    events = EventAccumulator(str(run.directory))
    events.Reload()
    for split, epochs in (("train", [1, 2]), ("val", [1, 2]), ("test", [2])):
        for term in ("total", "reconstruction", "kl"):
            assert [event.step for event in events.Scalars(f"{split}/{term}")] == epochs
        assert events.Scalars(f"{split}/total")[-1].value == pytest.approx(getattr(result, split).total)
    assert [event.value for event in events.Scalars("time/epoch_seconds")] == pytest.approx(result.timing.epoch_seconds)
    assert "time/images_per_second" in events.Tags()["scalars"]
    assert {*events.Tags()["images"]} >= {"test/reconstructions", "test/samples"}


def test_the_same_command_gives_the_same_losses(run_of: Compose) -> None:
    first = runner.run(run_of(*SMALL))
    again = runner.run(run_of(*SMALL, "name=again"))
    other = runner.run(run_of(*SMALL, "seed=1"))
    assert (first.train, first.val, first.test) == (again.train, again.val, again.test)
    assert first.config_sha256 == other.config_sha256
    assert first.test != other.test


def test_a_run_does_not_depend_on_what_its_process_did_before(run_of: Compose) -> None:
    runner.run(run_of(*SMALL, "name=warm_up", "seed=5", "latent.dim=3"))
    torch.manual_seed(123)
    torch.rand(17)
    first = runner.run(run_of(*SMALL))
    torch.manual_seed(4)
    assert runner.run(run_of(*SMALL, "name=again")).test == first.test


def test_configuration_and_weights_rebuild_the_model(run_of: Compose) -> None:
    run = run_of(*SMALL)
    result = runner.run(run)
    stored = config.validate(results.read_config(run.directory) or {})
    model = vae.build(stored)
    weights.load_weights(model, run.directory / "model.safetensors")
    module = LitVAE(model, config.build(stored.objective), config.build(stored.optimizer))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.test(module, config.build(stored.data), verbose=False)
    assert module.averages["test"].value()["total"] == pytest.approx(result.test.total, rel=1e-4)


def test_checkpoints_load_safely_and_best_is_the_best_epoch(run_of: Compose) -> None:
    run = run_of(*SMALL, "trainer.max_epochs=3", "scheduler=constant", "optimizer.lr=0.05")
    runner.run(run)
    with open(run.directory / "history.csv", newline="") as file:
        val = [float(row["total"]) for row in csv.DictReader(file) if row["split"] == "val"]
    best = torch.load(run.directory / "checkpoints" / "best.ckpt", weights_only=True)
    last = torch.load(run.directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert best["epoch"] == val.index(min(val))
    assert last["epoch"] == 2


def test_the_best_weights_are_tested_and_kept_on_request(run_of: Compose) -> None:
    # A rate that grows and grows: an early epoch is the best.
    words = (*SMALL, "trainer.max_epochs=3", "scheduler.pct_start=1.0", "optimizer.lr=1.0")
    last, best = (runner.run(run_of(*words, f"test_weights={which}")) for which in ("last", "best"))
    assert last.tested_epoch == 3
    assert best.tested_epoch is not None
    assert best.tested_epoch < 3
    assert best.test.total < last.test.total
    assert best.config_sha256 != last.config_sha256
    folder = run_of(*words, "test_weights=best").directory
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    kept = load_file(folder / "model.safetensors")
    assert all(torch.equal(checkpoint[f"vae.{name}"], kept[name]) for name in kept)


def test_without_validation_the_best_weights_are_those_of_the_lowest_training_total(run_of: Compose) -> None:
    result = runner.run(run_of(*SMALL, "data.num_val=0", "test_weights=best"))
    assert result.error is None
    assert result.tested_epoch == 2


def test_weights_have_the_permissions_of_other_files(run_of: Compose) -> None:
    run = run_of(*SMALL)
    runner.run(run)
    modes = {(run.directory / name).stat().st_mode for name in ("model.safetensors", "config.yaml")}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("Broken", "ZeroDivisionError: a bug in a user's block"),
        ("Exploding", "LossError: the train loss is not finite in step 1 (epoch 1, step 1 of 4)"),
    ],
)
def test_a_failure_is_recorded_not_raised(run_of: Compose, block: str, words: str) -> None:
    run = run_of(*SMALL, f"encoder.blocks=[{{down:4}},{{_target_:{__name__}.{block}}}]")
    result = runner.run(run)
    assert result.status == "failed"
    assert words in (result.error or "")
    assert results.read_result(run.directory) == result
    assert words.partition(": ")[2] in (run.directory / "traceback.txt").read_text()


def test_a_failed_run_leaves_nothing_to_the_next_attempt(run_of: Compose) -> None:
    run = run_of(*SMALL)
    runner.run(run)
    (run.directory / "traceback.txt").touch()
    events = len(list(run.directory.glob("events.*")))
    assert runner.run(run).finished
    assert not (run.directory / "traceback.txt").exists()
    assert len(list(run.directory.glob("events.*"))) == events


@pytest.mark.parametrize("trainer", ["default", "debug"])
def test_without_validation_images_val_is_null(run_of: Compose, trainer: str) -> None:
    result = runner.run(run_of(*SMALL, "data.num_val=0", f"trainer={trainer}"))
    assert result.finished
    assert result.val.total is None
    assert result.test.total is not None


def test_epochs_without_validation_have_no_row_for_it(run_of: Compose) -> None:
    run = run_of(*SMALL, "trainer.max_epochs=4", "+trainer.check_val_every_n_epoch=2")
    assert runner.run(run).finished
    with open(run.directory / "history.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["split"] == "val"] == ["2", "4"]


def test_a_training_may_end_in_the_middle_of_an_epoch(run_of: Compose) -> None:
    result = runner.run(run_of(*SMALL, "data.batch_size=20", "+trainer.max_steps=13"))
    assert result.finished, result.error
    assert len(result.timing.epoch_seconds) == 2
    # one step of ten apart, then three of ten
    assert result.timing.images_per_second == pytest.approx((180 + 60) / (result.timing.train_seconds or 0))


def test_the_schedule_ends_with_the_training(run_of: Compose) -> None:
    run = run_of(*SMALL, "data.batch_size=20", "+trainer.accumulate_grad_batches=4")
    assert runner.run(run).finished
    last = torch.load(run.directory / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["_step_count"] == last["lr_schedulers"][0]["total_steps"] + 1 == 7


def test_memory_is_measured_for_each_run_alone(run_of: Compose) -> None:
    runner.run(run_of(*SMALL, "data.batch_size=200", "encoder.blocks=[{conv:256},{down:8}]", "name=large"))
    large = results.read_result(next(Path("outputs/large").glob("*/*")))
    small = runner.run(run_of(*SMALL))
    assert large is not None
    if small.memory.peak_bytes is None:
        pytest.skip("this system does not tell a process's highest memory")
    assert small.memory.peak_bytes < large.memory.peak_bytes


def test_bf16_and_colour_go_through_the_same_path(run_of: Compose) -> None:
    result = runner.run(run_of(*SMALL, "trainer.precision=bf16-mixed"))
    assert result.finished, result.error
    assert result.train.total == pytest.approx(runner.run(run_of(*SMALL)).train.total, rel=0.02)


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("+trainer.max_epoch=3", "trainer.max_epoch", "did you mean 'max_epochs'?"),
        ("trainer.precision=7", "trainer", "Precision"),
        ("trainer.accelerator=abacus", "trainer", "abacus"),
        ("data.root=/nowhere", "data", "/nowhere"),
        ("data.dataset=foo.Bar", "data", "No module named 'foo'"),
        ("data.dataset=math.pi", "data", "must name a class such as torchvision.datasets.FashionMNIST"),
        ("optimizer.lr=1 +optimizer.betas=3", "optimizer", "cannot be built"),
        ("optimizer=adamw optimizer.weight_decay=abc", "optimizer", "cannot be built"),
        ("scheduler.total_steps=abc", "scheduler", "cannot be built"),
        (f"objective._target_={__name__}.NoKl", "objective", "returns no kl"),
        (f"objective._target_={__name__}.NoUnit", "objective", "returns the term 'sparsity' without a unit"),
        (f"objective._target_={__name__}.no_objective", "objective", "must be a vae_lab.Objective"),
    ],
)
def test_problems_that_only_torch_can_find_are_reported_before_training(
    run_of: Compose, override: str, key: str, words: str
) -> None:
    def check(settings: config.Config) -> None:
        runner.check(settings)
        runner.check_data(settings)

    with pytest.raises(config.ConfigError) as raised:
        check(run_of(*override.split()).config)
    assert raised.value.problems[0].key == key
    assert words in raised.value.problems[0].text
