"""Runs and configurations of version 0.1 keep their meaning."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Compose

import vae_lab
from vae_lab import config, results
from vae_lab.config import ConfigError, MetricsConfig, names
from vae_lab.config.versions import upgraded
from vae_lab.model import vae
from vae_lab.report import prepare, write
from vae_lab.trained import export
from vae_lab.trained.evaluate import evaluate
from vae_lab.training import plan

FIXTURES = Path(__file__).parent / "fixtures"
CHECKSUMS: dict[str, tuple[str, str]] = json.loads((FIXTURES / "checksums.json").read_text())
MACHINE = ("trainer.threads=1", "trainer.precision=32-true", "name=x")
OLD_WORDS = (
    "++encoder.width=0.25", "++decoder.width=0.25", "latent.dim=2", "trainer.threads=1", "trainer.precision=32-true",
    "trainer.max_epochs=2", "data.num_train=128", "data.num_val=64", "data.num_test=64",
)  # fmt: skip


@pytest.mark.parametrize("words", CHECKSUMS, ids=lambda words: words or "defaults")
def test_cells_and_checksums_are_those_of_version_0_1(run_of: Compose, words: str) -> None:
    run = run_of(*MACHINE, *words.split())
    assert (run.cell, run.config.sha256()) == tuple(CHECKSUMS[words])


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run that version 0.1 left, under outputs/old_run, without its checkpoints and events."""
    shutil.copytree(FIXTURES / "run_of_0.1", tmp_path / "outputs" / "old_run")
    (folder,) = tmp_path.glob("outputs/old_run/*/seed-0")
    return folder


def test_a_run_of_version_0_1_is_finished(run_of: Compose, old_run: Path) -> None:
    run = run_of("name=old_run", *OLD_WORDS)
    assert run.directory == old_run
    result = plan.finished(run)
    assert result is not None
    assert plan.measured(run, result)
    assert plan.stage(run).name == "finished"


def test_it_loads_and_reconstructs_what_it_did(old_run: Path) -> None:
    model = vae_lab.load(old_run)
    pictures = results.read_pictures(old_run)
    originals = torch.from_numpy(pictures["originals"]).float() / 255
    now = (model.reconstruct(originals) * 255).round()
    assert (now - torch.from_numpy(pictures["reconstructions"])).abs().max() <= 1  # another processor may round apart
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(20131220))
    assert ((model.decode(z) * 255).round() - torch.from_numpy(pictures["samples"])).abs().max() <= 1


def test_it_is_measured_as_it_was(old_run: Path) -> None:
    before = results.read_result(old_run)
    assert before is not None
    after = evaluate(old_run, MetricsConfig(), root=str(config.PACKAGE / "assets" / "fashion_mnist_3k"))
    for name in ("elbo", "mse", "psnr", "fid_samples", "fid_reconstructions"):
        assert after.test.model_dump()[name] == pytest.approx(before.test.model_dump()[name], rel=1e-4), name
    assert after.nats == "real"


def test_it_is_reported_beside_runs_of_today(run_of: Compose, old_run: Path, tmp_path: Path) -> None:
    from vae_lab.training import runner

    assert runner.run(run_of("name=old_run", "seed=1", *OLD_WORDS)).finished
    prepared = prepare([old_run.parents[1]])
    assert not prepared.study.holes
    assert prepared.study.seeds == (0, 1)
    assert len(prepared.study.compared) == 2
    assert not [note for note in prepared.study.notes if "differ" in note and "not of one clean commit" not in note]
    assert (write(prepared, tmp_path / "report") / "report.html").exists()


def test_it_is_exported(old_run: Path, tmp_path: Path) -> None:
    exported = export.export(old_run, ["safetensors"], tmp_path / "export")
    again = vae_lab.load(exported.folder)
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(again.reconstruct(images), vae_lab.load(old_run).reconstruct(images))
    stored = yaml.safe_load((exported.folder / "config.yaml").read_text())
    assert stored["objective"] == {"_target_": "vae_lab.MseKl", "beta": 0.01, "sigma": None}


def test_every_alias_stands_for_a_public_name_and_every_public_name_exists() -> None:
    assert {*names.ALIASES.values()} <= {f"vae_lab.{name}" for name in names.homes()}
    for name in names.homes():
        assert getattr(vae_lab, name).__module__.startswith("vae_lab.")


def test_moving_a_class_to_another_file_changes_no_checksum(run_of: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_of().config.sha256()
    monkeypatch.setitem(names._OTHERS, "Encoder", "somewhere.else")
    names.homes.cache_clear()
    assert run_of().config.sha256() == before
    names.homes.cache_clear()


class OldDecoder(torch.nn.Module):
    """A user's decoder of version 0.1, with a sigmoid of its own."""

    def __init__(self, image_shape: list[int], latent_dim: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(latent_dim, 784)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z).sigmoid().reshape(-1, 1, 28, 28)


def stored(old_run: Path, **changes: Any) -> dict[str, Any]:
    loaded = yaml.safe_load((old_run / "config.yaml").read_text())
    return loaded | changes


def test_a_users_decoder_of_version_0_1_keeps_its_own_sigmoid(old_run: Path) -> None:
    settings = config.validate(stored(old_run, decoder={"_target_": f"{__name__}.OldDecoder"}))
    assert settings.likelihood.link == "identity"
    model = vae.build(settings).eval()
    z = torch.randn(3, 2)
    torch.testing.assert_close(model.decode(z), model.decoder(z))


def test_a_stored_name_that_no_longer_exists_is_said_with_the_names_that_do(old_run: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        config.validate(stored(old_run, objective={"_target_": "vae_lab.MseKL", "beta": 0.1}))
    expected = (
        "objective._target_: this version of vae_lab has no objective vae_lab.MseKL; did you mean 'vae_lab.MseKl'?"
    )
    assert str(raised.value).startswith(expected)


def test_todays_configurations_are_left_as_they_are(run_of: Compose) -> None:
    container = run_of("likelihood=bernoulli", "objective=elbo", "data.binarize=dynamic").config.container()
    assert upgraded(container) == container
    assert config.validate(container).container() == container


def test_words_of_version_0_1_that_replace_the_data_module_still_do(run_of: Compose) -> None:
    left_out = ("dataset", "root", "train_images", "test_images", "num_val", "num_test", "subset", "subset_seed")
    run = run_of("data._target_=mine.Images", *(f"~data.{key}" for key in left_out))
    assert {*run.config.data.model_dump()} == {"_target_", "image_shape", "num_train", "batch_size"}
