"""Files of a run: whole or not there, judged when read."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vae_lab import results
from vae_lab.results import Environment, Losses, Result

ENVIRONMENT = Environment(python="3.11", torch="2.15", lightning="2.6", device="x", threads=2, commit=None)


def result(**changes: Any) -> Result:
    values: dict[str, Any] = {
        "status": "finished",
        "error": None,
        "cell": "a-b",
        "encoder": "a",
        "decoder": "b",
        "seed": 0,
        "overrides": [],
        "config_sha256": "0" * 64,
        "environment": ENVIRONMENT,
    }
    return Result(**values | changes)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = result(train=Losses(total=0.019, reconstruction=0.0149, kl=0.4128), seed=3)
    results.write_result(tmp_path, written)
    assert results.read_result(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_keys_of_a_result_stay_the_same(tmp_path: Path) -> None:
    results.write_result(tmp_path, result())
    loaded = json.loads((tmp_path / "result.json").read_text())
    assert loaded["schema"] == 1
    assert set(loaded) == {
        "schema", "status", "error", "cell", "encoder", "decoder", "seed", "overrides", "config_sha256", "train",
        "val", "test", "timing", "model", "memory", "environment", "position", "resumed",
        "wall_seconds", "files", "metrics", "warnings", "terms", "nats", "divergence", "tested_epoch",
    }  # fmt: skip
    assert set(loaded["timing"]) == {
        "train_seconds",
        "epoch_seconds",
        "first_step_seconds",
        "images_per_second",
        "cpu_share",
        "metrics_seconds",
    }
    assert set(loaded["model"]) == {
        "parameters",
        "encoder_parameters",
        "decoder_parameters",
        "posterior_parameters",
        "prior_parameters",
        "likelihood_parameters",
        "flops_per_image",
        "match",
    }
    assert set(loaded["environment"]) == {"python", "torch", "lightning", "device", "threads", "processes", "commit"}


def test_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    results.write_result(tmp_path, result(test=results.Test(total=math.nan, reconstruction=math.inf, kl=1.0)))
    loaded = json.loads((tmp_path / "result.json").read_text())
    assert {name for name, value in loaded["test"].items() if value is not None} == {"kl"}
    assert loaded["test"].keys() >= {"total", "reconstruction", "elbo", "iwae_100", "fid_samples"}


def test_keys_of_later_versions_are_kept(tmp_path: Path) -> None:
    results.write_result(tmp_path, result(test=results.Test(total=0.1, elbo=1.5)))
    assert json.loads(results.read_result(tmp_path).model_dump_json())["test"]["elbo"] == 1.5


@pytest.mark.parametrize("harm", ["", "{", "[]", "null", '{"schema": 2}', '{"schema": 1}', "\xff"])
def test_a_file_that_does_not_parse_is_no_result(tmp_path: Path, harm: str) -> None:
    assert results.read_result(tmp_path) is None
    (tmp_path / "result.json").write_text(harm, encoding="latin-1")
    assert results.read_result(tmp_path) is None


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_text(tmp_path / "x", "old")

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        results.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "old"


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [
        (1, "train", 2.0, {"total": 0.5, "reconstruction": 0.25, "kl": 1.5}),
        (1, "val", 0.5, {"total": 0.75, "reconstruction": 0.5, "kl": 1.0}),
    ]
    results.write_history(tmp_path, rows)
    assert results.read_history(tmp_path) == {
        "train": {"epoch": [1], "total": [0.5], "reconstruction": [0.25], "kl": [1.5], "seconds": [2.0]},
        "val": {"epoch": [1], "total": [0.75], "reconstruction": [0.5], "kl": [1.0], "seconds": [0.5]},
    }


@pytest.mark.parametrize(
    "harm", ["", "epoch\n", "a,b\n1,2\n", "{head}1,train,0.1\n", "{head}1,train,x,1,1,1\n", "\xff"]
)
def test_a_file_that_does_not_parse_is_no_history(tmp_path: Path, harm: str) -> None:
    assert results.read_history(tmp_path) == {}
    text = harm.format(head="epoch,split,total,reconstruction,kl,seconds\n")
    (tmp_path / "history.csv").write_text(text, encoding="latin-1")
    assert results.read_history(tmp_path) == {}


@pytest.mark.parametrize("harm", [b"", b"PK\x03\x04", b"junk"])
def test_a_file_that_does_not_parse_has_no_pictures(tmp_path: Path, harm: bytes) -> None:
    assert results.read_pictures(tmp_path) == {}
    (tmp_path / "pictures.npz").write_bytes(harm)
    assert results.read_pictures(tmp_path) == {}


def test_pictures_with_code_in_them_are_not_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", originals=np.array([{"a": 1}], dtype=object))
    assert results.read_pictures(tmp_path) == {}


def test_clear_removes_the_files_of_a_run_and_nothing_else(tmp_path: Path) -> None:
    results.write_result(tmp_path, result())
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "events.out.tfevents.1").touch()
    (tmp_path / "notes.txt").touch()
    results.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", ["[" * 200_000, "a: &a [1]\nb: [*a, *a]\n", f"seed: 0x{'f' * 9999}\n"])
def test_a_configuration_that_would_expand_to_more_than_its_text_is_refused(tmp_path: Path, text: str) -> None:
    """PyYAML's reader in C crashes the process over lists that are nested too deep."""
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text(text)
    assert results.read_config(tmp_path) is None
    assert results.read_config_folders(tmp_path) == []
