"""Sheets of pictures: what they show, and what cannot be drawn."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Tensor

import vae_lab
from vae_lab import cli, results
from vae_lab.cli import generate
from vae_lab.config import Run, config_folder
from vae_lab.evaluation.runs import open_images
from vae_lab.model import samplers
from vae_lab.trained import sheets
from vae_lab.trained.loading import read_settings
from vae_lab.trained.sheets import Wanted
from vae_lab.training import runner

SMALL = (
    "name=small", "latent.dim=4", "data.num_train=64", "data.num_val=20", "data.num_test=20", "trainer.max_epochs=1",
    "trainer.threads=1", "callbacks=quiet", "logger=csv", "decoder.blocks=[{unflatten:4},{up:4},{up:4}]",
    "encoder.blocks=[{down:2},{down:4}]",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that was really trained."""
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(config_folder()), version_base="1.3"):
        patch.chdir(tmp_path_factory.mktemp("trained"))
        run = Run.of(compose("train", list(SMALL), return_hydra_config=True))
        assert runner.run(run).finished
        return run.directory


def drawn(run: Path, out: Path, *words: str) -> np.ndarray:
    cli.main(["generate", str(run), "--out", str(out), *words])
    with Image.open(out) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def tiles(pixels: np.ndarray, rows: int, columns: int, scale: int, margin: int, *, pairs: bool = False) -> np.ndarray:
    """The images of a sheet, a pixel each in place of a square of them: (rows, columns, 28, 28)."""
    side = 28 * scale
    tops = [margin + row * (side + margin) + (row // 2) * 2 * margin * pairs for row in range(rows)]
    lefts = [margin + column * (side + margin) for column in range(columns)]
    assert pixels.shape == (tops[-1] + side + margin, lefts[-1] + side + margin, 3)
    found = np.stack([[pixels[top : top + side, left : left + side] for left in lefts] for top in tops])
    small = found[:, :, ::scale, ::scale, 0]
    assert (found[..., 0] == small.repeat(scale, 2).repeat(scale, 3)).all(), "each pixel is a square of one colour"
    return small


def as_bytes(images: Tensor) -> np.ndarray:
    return images[:, 0].mul(255).round().byte().numpy()


def test_samples_are_those_of_the_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = tiles(drawn(run, tmp_path / "new" / "a.png", "--count", "12", "--columns", "4", "--seed", "5"), 3, 4, 3, 4)
    assert (shown.reshape(12, 28, 28) == as_bytes(vae_lab.load(run).sample(12, seed=5))).all()
    assert "a.png: 12 samples of the prior, seed 5, of " in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "words"), [("gaussian", "a Gaussian"), ("mixture", "a mixture")])
def test_samples_of_a_fitted_density_are_those_of_the_library(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: Any, words: str
) -> None:
    pixels = drawn(run, tmp_path / "a.png", "--count", "6", "--columns", "3", "--seed", "5", "--sampler", kind)
    model = vae_lab.load(run)
    data = open_images(run, read_settings(run), "fit")
    images = data.splits["train"].images.float() / 255
    expected = model.decode(samplers.fit(model, images, kind).sample(6, seed=5))
    assert (tiles(pixels, 2, 3, 3, 4).reshape(6, 28, 28) == as_bytes(expected)).all()
    assert f"6 samples of {words} fitted to the training codes, seed 5, of " in capsys.readouterr().out


def test_reconstructions_lie_under_their_test_images(run: Path, tmp_path: Path) -> None:
    pixels = drawn(run, tmp_path / "a.png", "--what", "reconstructions", "--index", "7", "0", "3", "--columns", "2")
    shown = tiles(pixels, 4, 2, 3, 4, pairs=True)
    model = vae_lab.load(run)
    images = next(sheets.TestImages(run, None, model).batches())[[7, 0, 3]]
    assert (shown[[0, 2]].reshape(4, 28, 28)[:3] == as_bytes(images)).all()
    assert (shown[[1, 3]].reshape(4, 28, 28)[:3] == as_bytes(model.reconstruct(images))).all()
    assert (shown[2:, 1] == 255).all(), "white where there is no image"


def test_a_seed_chooses_the_images(run: Path, tmp_path: Path) -> None:
    words = ("--what", "reconstructions", "--count", "5", "--seed")
    first, again, other = (drawn(run, tmp_path / "a.png", *words, seed) for seed in ("1", "1", "2"))
    assert (first == again).all()
    assert (first != other).any()


def test_interpolations_go_from_one_image_to_the_next(run: Path, tmp_path: Path) -> None:
    words = ("--what", "interpolation", "--index", "2", "5", "9", "--columns", "4", "--scale", "1")
    shown = tiles(drawn(run, tmp_path / "a.png", *words), 2, 4, 1, 2)
    model = vae_lab.load(run)
    images = next(sheets.TestImages(run, None, model).batches())
    for row, (a, b) in enumerate(((2, 5), (5, 9))):
        assert (shown[row] == as_bytes(model.interpolate(images[a], images[b], 4))).all()


def test_a_traversal_takes_the_dimensions_that_are_named_or_that_vary_most(run: Path, tmp_path: Path) -> None:
    model = vae_lab.load(run)
    test = sheets.TestImages(run, None, model)
    image = next(test.batches())[3]
    words = ("--what", "traversal", "--index", "3", "--columns", "5", "--span", "2")
    shown = tiles(drawn(run, tmp_path / "a.png", *words, "--dims", "2", "0"), 2, 5, 3, 4)
    assert (shown.reshape(10, 28, 28) == as_bytes(model.traverse(image, [2, 0], 2.0, 5).flatten(0, 1))).all()
    codes = test.codes()
    assert codes.shape == (20, 4)
    order = sheets.most_active(codes)
    assert codes.var(0)[order].diff().max() <= 0
    shown = tiles(drawn(run, tmp_path / "a.png", *words, "--rows", "3"), 3, 5, 3, 4)
    assert (shown.reshape(15, 28, 28) == as_bytes(model.traverse(image, order[:3], 2.0, 5).flatten(0, 1))).all()


def test_a_manifold_is_a_plane_of_codes(run: Path) -> None:
    model = vae_lab.load(run)
    test = sheets.TestImages(run, "nowhere", model)  # named dimensions take no images
    made = sheets.draw(model, Wanted("manifold", rows=2, columns=3, dims=(1, 3), span=2.0), test)
    corner = torch.tensor([[0.0, -2, 0, 2]])
    torch.testing.assert_close(made.images[:1], model.decode(corner))  # to the left and up
    torch.testing.assert_close(made.images[5:], model.decode(-corner))
    assert sheets.sheet(made, 1).shape == (56, 84, 3), "no margin"


def test_principal_components_are_those_of_the_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator))
    spread = torch.tensor([0.1, 3.0, 0.2, 1.0, 0.3])
    codes = torch.randn(4000, 5, generator=generator) * spread @ turn.T + 7
    middle, axes = sheets.principal_axes(codes)
    torch.testing.assert_close(middle, codes.mean(0))
    torch.testing.assert_close(axes.norm(dim=1), torch.tensor([3.0, 1.0]), rtol=0.05, atol=0)
    assert (axes[0] / axes[0].norm() @ turn[:, 1]).abs() > 0.99
    assert sheets.principal_axes(codes[:1])[1].abs().max() == 0, "one code has no spread"


def test_the_command_knows_every_kind() -> None:
    assert [*generate.KINDS] == [*sheets.KINDS]
    assert generate.KINDS_OF_SAMPLER == samplers.KINDS
    assert {option for options in generate.KINDS.values() for option in options} <= {*Wanted.__dataclass_fields__}
    assert all(f"  {kind} " in generate.GENERATE for kind in generate.KINDS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "a.jpg"], "--out: must end in .png, the one format that is written, but is 'a.jpg'"),
        (["--out", "."], "--out: must end in .png"),
        (["--what", "traversal", "--dims", "1", "4"], "must be among the latent dimensions 0 to 3, but 4 is not"),
        (["--dims", "1"], "--dims: has no meaning for samples; it is for traversal and manifold"),
        (["--what", "manifold", "--dims", "1"], "--dims: a manifold has two different dimensions, but got 1"),
        (["--what", "traversal", "--span", "nan"], "--span: must be a finite number greater than 0, but is nan"),
        (["--what", "manifold", "--sampler", "mixture"], "--sampler: has no meaning for manifold; it is for samples"),
        (["--rows", "0"], "--rows: must be at least 1, but is 0"),
        (["--rows", "9", "--count", "9"], "--count: gives the number of rows; leave out --rows"),
        (["--rows", "90000"], "ask for fewer images or a smaller --scale"),
        (["--what", "reconstructions", "--index", "3", "20"], "the 20 test images of the run, 0 to 19, but 20 is"),
        (["--what", "reconstructions", "--count", "21"], "the run has 20 test images, but 21 are wanted"),
        (["--what", "interpolation", "--index", "3"], "from one test image to the next, but 3 is one"),
        (["--what", "interpolation", "--columns", "1"], "--columns: must be at least 2"),
        (["--what", "traversal", "--rows", "5"], "--rows: must be at most 4, the latent dimensions, but is 5"),
        (["--what", "reconstructions", "--data-root", "nowhere"], "there is no folder nowhere"),
        (["--device", "tpu9"], "there is no device 'tpu9'"),
        (["--best", "val.total"], "is the folder of one run: leave out best='val.total'"),
        (["--out", "file/a.png"], "file"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_drawn_are_refused_in_one_sentence(
    run: Path,
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ending:
        cli.main(["generate", str(run), *([] if "--out" in words else ["--out", "a.png"]), *words])
    assert ending.value.code == 1
    said = capsys.readouterr().err
    assert told in said
    assert said.startswith("Nothing was drawn: ")
    assert said.count("\n") == 1
    assert not [*tmp_path.rglob("*.png")]


def test_folders_without_a_model_and_hostile_ones_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, *words: str) -> str:
        with pytest.raises(SystemExit) as ending:
            cli.main(["generate", str(folder), "--out", str(tmp_path / "a.png"), *words])
        assert ending.value.code == 1
        return capsys.readouterr().err

    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "has no finished run" in refused(tmp_path)
    assert "name one of them, such as" in refused(run.parents[1])
    copy = Path(shutil.copytree(run, tmp_path / "seed-0"))
    path = copy / results.CONFIG
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"data": settings["data"] | {"dataset": "antigravity.fly"}}))
    assert "its images come from 'antigravity.fly'" in refused(copy, "--what", "reconstructions")
    path.write_text(yaml.safe_dump(settings | {"decoder": {"_target_": "antigravity.fly"}}))
    assert "add allow=['antigravity']" in refused(copy)
    other = {"latent": settings["latent"] | {"dim": 5}, "likelihood": settings["likelihood"] | {"sigma": "from_beta"}}
    path.write_text(yaml.safe_dump(settings | other))
    assert "does not fit config.yaml beside it" in refused(copy)
    shutil.copy(run / results.CONFIG, path)
    (copy / results.RESULT).unlink()
    assert "has no result.json: the run did not end" in refused(copy)


def test_files_of_the_run_itself_are_not_overwritten(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "seed-0"))
    result = results.read_result(copy)
    assert result is not None
    results.write_result(copy, result.model_copy(update={"files": result.files | {"samples.png": "0"}}))
    with pytest.raises(SystemExit):
        cli.main(["generate", str(copy), "--out", str(copy / "samples.png")])
    assert "is a file that the run itself left; choose another name or folder" in capsys.readouterr().err
