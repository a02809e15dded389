"""What loggers hold after a run: TensorBoard's pages, CSV, MLflow, Weights & Biases."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from test_runner import SMALL
from torch.utils.data import DataLoader, TensorDataset

from vae_lab.config import ConfigError
from vae_lab.training import runner
from vae_lab.training.callbacks import Monitor, Pictures, TensorBoardPages
from vae_lab.training.loggers import hyperparameters

PICTURES = {"val/reconstructions", "latent/samples", "latent/traversals", "latent/interpolations"}


def test_tensorboard_shows_what_a_reader_looks_for(run_of: Compose) -> None:
    run = run_of(*SMALL, "trainer.max_epochs=3", "callbacks.pages.points=30")
    result = runner.run(run)
    assert result.finished
    events = EventAccumulator(str(run.directory), size_guidance={"tensors": 0, "images": 0, "histograms": 0})
    events.Reload()
    tags: dict[str, Any] = events.Tags()
    assert {*tags["images"]} == PICTURES | {"test/reconstructions", "test/samples"}
    for name in PICTURES:  # every two epochs, and the last
        assert [event.step for event in events.Images(name)] == [2, 3]
    for name in ("optimizer/learning_rate", "optimizer/gradient_norm", "memory/peak_megabytes"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3]
        assert all(event.value >= 0 for event in events.Scalars(name))
    histograms = events.Histograms("val/kl_per_dimension")
    assert [event.step for event in histograms] == [1, 2, 3]
    assert histograms[0].histogram_value.num == 8
    assert histograms[-1].histogram_value.sum / 8 == pytest.approx(result.val.kl, rel=1e-4)
    (elbo,) = events.Scalars("test/elbo")
    assert (elbo.step, elbo.value) == (3, pytest.approx(result.test.elbo, rel=1e-5))
    assert [event.step for event in events.Scalars("test/total")] == [3]


def test_the_hparams_page_has_the_variants_and_the_final_metrics(run_of: Compose) -> None:
    run = run_of(*SMALL, "callbacks=quiet", "seed=4")
    runner.run(run)
    events = EventAccumulator(str(run.directory))
    events.Reload()
    found = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
        for tag in events.PluginTagToContent("hparams")
    }
    started = found["_hparams_/session_start_info"].session_start_info.hparams
    assert {started[key].string_value for key in ("encoder", "decoder")} == {"vanilla"}
    assert started["seed"].number_value == 4
    assert started["latent.dim"].number_value == 8
    metrics = [info.name.tag for info in found["_hparams_/experiment"].experiment.metric_infos]
    assert {"test/total", "test/elbo", "test/fid_samples"} <= {*metrics}
    assert "hp_metric" not in metrics
    assert {*metrics} <= {*events.Tags()["scalars"]}


def test_the_projector_has_the_test_images_with_their_classes(run_of: Compose) -> None:
    run = run_of(*SMALL, "callbacks.pages.points=25", "trainer.max_epochs=1")
    runner.run(run)
    config = (run.directory / "projector_config.pbtxt").read_text()
    (folder,) = (run.directory / "projector").iterdir()
    assert f"projector/{folder.name}/tensors.tsv" in config
    assert "sprite" in config
    points = (folder / "tensors.tsv").read_text().splitlines()
    names = (folder / "metadata.tsv").read_text().splitlines()
    assert (len(points), len(points[0].split("\t")), len(names)) == (25, 8, 25)
    assert names[:3] == ["Ankle boot", "Pullover", "Trouser"]  # the first three of the test set


class Noise(LightningDataModule):
    """A user's images, with values on both sides of 0."""

    def __init__(self, image_shape: list[int], num_train: int, batch_size: int) -> None:
        super().__init__()
        self.images = torch.randn(num_train, *image_shape, generator=torch.Generator().manual_seed(0))
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.images, torch.arange(len(self.images))), self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


def of_noise(*image_shape: int) -> tuple[str, ...]:
    others = (
        "dataset", "root", "train_images", "test_images", "num_val", "num_test", "subset", "subset_seed", "binarize",
        "binarize_seed",
    )  # fmt: skip
    return (
        f"data._target_={__name__}.Noise", *(f"~data.{key}" for key in others), "data.num_train=20",
        f"data.image_shape={[*image_shape]}", "latent.dim=4", "encoder=mlp", "decoder=mlp", "trainer.max_epochs=2",
        "trainer.threads=1", "name=noise",
    )  # fmt: skip


def test_high_images_are_shown_and_so_are_values_beyond_those_of_pictures(run_of: Compose) -> None:
    run = run_of(*of_noise(1, 24, 8))
    assert runner.run(run).error is None
    events = EventAccumulator(str(run.directory))
    events.Reload()
    assert {*events.Tags()["images"]} >= PICTURES
    (folder,) = (run.directory / "projector").iterdir()
    assert "single_image_dim: 24\n    single_image_dim: 24" in (run.directory / "projector_config.pbtxt").read_text()
    assert (folder / "sprite.png").exists()


def test_what_cannot_be_shown_costs_no_model(run_of: Compose, caplog: pytest.LogCaptureFixture) -> None:
    run = run_of(*of_noise(2, 12, 12), "trainer.precision=64-true")
    result = runner.run(run)
    assert result.error is None
    assert result.test.psnr is not None
    assert "left out: the projector" in caplog.text


def test_all_cells_are_laid_over_each_other_on_one_page(run_of: Compose) -> None:
    run = run_of(*SMALL, "trainer.max_epochs=1")
    runner.run(run)
    events = EventAccumulator(str(run.directory))
    events.Reload()
    (tensor,) = events.Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0]).category
    tags = {tag for chart in category.chart for tag in chart.multiline.tag}
    assert tags <= {*events.Tags()["scalars"]}
    assert {"train/total", "val/total"} <= tags


def test_what_watches_a_training_does_not_change_it(run_of: Compose) -> None:
    watched = run_of(*SMALL, "name=watched", "callbacks.pictures.every_epochs=1", "metrics=full")
    alone = run_of(*SMALL, "name=alone", "callbacks=quiet", "logger=csv")
    assert watched.config.sha256() == alone.config.sha256()
    for run in (watched, alone):
        assert runner.run(run).finished
    one, other = (load_file(run.directory / "model.safetensors") for run in (watched, alone))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's use of SQLAlchemy
def test_several_loggers_at_once(run_of: Compose, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    folders = []
    for seed in (0, 1):  # in one process, as in a multirun
        run = run_of(*SMALL, "logger=[csv,mlflow,wandb]", f"seed={seed}", "callbacks.pages.points=0")
        result = runner.run(run)
        assert result.finished, result.error
        folders.append(run.directory)
        with open(run.directory / "csv" / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("test/elbo")]
        assert [float(row["test/elbo"]) for row in rows] == [pytest.approx(result.test.elbo, rel=1e-5)]

    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///outputs/mlflow.db")
    (study,) = (one for one in client.search_experiments() if one.name == "test")
    runs = sorted(client.search_runs([study.experiment_id]), key=lambda one: one.info.run_name)
    assert [one.info.run_name for one in runs] == [f"{folders[0].parent.name}/seed-{seed}" for seed in (0, 1)]
    for one, folder in zip(runs, folders, strict=True):
        test = json.loads((folder / "result.json").read_text())["test"]
        assert one.data.metrics["test/total"] == pytest.approx(test["total"], rel=1e-5)
        assert one.data.metrics["test/psnr"] == pytest.approx(test["psnr"], rel=1e-5)
        assert one.data.params["encoder"] == "vanilla"
        assert client.list_artifacts(one.info.run_id)
        assert list((folder / "wandb").glob("offline-run-*/run-*.wandb")), "each run has its own"


@pytest.mark.parametrize(("logger", "package"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_logger_whose_package_is_missing_is_reported(
    logger: str, package: str, run_of: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(ConfigError) as raised:
        runner.check(run_of(f"logger={logger}").config)
    assert f"logger.{logger}: needs the package {package}, which is not installed" in str(raised.value)
    assert f"pip install 'vae-lab[{package}]'" in str(raised.value)


def test_hyperparameters_are_the_variants_the_usual_values_and_what_was_set(run_of: Compose) -> None:
    run = run_of("encoder=mlp", "objective.beta=0.1", "data.num_train=500", "optimizer=adamw", "logger=csv", "seed=3")
    found = hyperparameters(run)
    expected = {
        "encoder": "mlp", "decoder": "vanilla", "seed": 3, "latent.dim": 256, "objective.beta": 0.1,
        "optimizer.lr": 0.005, "trainer.max_epochs": 10, "data.num_train": 500, "optimizer": "adamw",
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert not any(key.startswith("logger") for key in found)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Monitor(every_steps=0), "every_steps must be at least 1, but is 0"),
        (lambda: TensorBoardPages(points=-1), "points must be at least 0, but is -1"),
        (lambda: Pictures(folder=".", every_epochs=0), "every_epochs must be at least 1, but is 0"),
        (lambda: Pictures(folder=".", rows=0), "rows must be at least 1, but is 0"),
    ],
)
def test_arguments_out_of_range_are_reported(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
