"""What a configuration only names, images and code, is part of what makes a run the same."""

import gzip
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Compose
from runs import ENVIRONMENT, write_run

from vae_lab import results
from vae_lab.config import ConfigError, FolderConfig, Run, fingerprint
from vae_lab.config.sources import digest_of
from vae_lab.data.fingerprint import complete, forget
from vae_lab.study.gather import gather
from vae_lab.sweep import checks

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write files of a user's code, which Python then finds, or replace a text in one of them."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(name: str, text: str, by: str | None = None) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if by is not None:
            assert text in path.read_text()
            text = path.read_text().replace(text, by)
        path.write_text(textwrap.dedent(text))
        sys.modules.pop(path.stem, None)

    return written


# --- Code --------------------------------------------------------------------------------------------------

NET = '''
import torch
from torch import nn
from fp_helper import scale
from fp_package import layers

LIMIT = 3

@torch.no_grad()
def factor(x):
    return scale(x) * LIMIT

class Net(nn.Module):
    """A network."""

    def forward(self, x):
        return factor(x) + layers.shift(x)

class Other(nn.Module):
    def forward(self, x):
        return 0 * x
'''


@pytest.mark.parametrize(
    ("file", "text", "by", "is_same"),
    [
        ("fp_net.py", '"""A network."""', '"""Its text."""  # and a comment', True),
        ("fp_net.py", "scale(x) * LIMIT", "(scale(x)\n        * LIMIT)", True),
        ("fp_net.py", "return 0 * x", "return 1 * x", True),
        ("fp_helper.py", "return 1", "return 2", True),
        ("fp_package/layers.py", "return x - 1", "return x - 2", True),
        ("fp_net.py", "LIMIT = 3", "LIMIT = 4", False),
        ("fp_net.py", "LIMIT = 3", "LIMIT = 3\ntorch.set_default_dtype(torch.float64)", False),
        ("fp_net.py", "LIMIT = 3", "LIMIT = 3\n@torch.distributions.register_kl(A, B)\ndef f(): pass", False),
        ("fp_helper.py", "return x", "return 2 * x", False),
        ("fp_helper.py", "def scale", "print('imported')\ndef scale", False),
        ("fp_package/layers.py", "return x + 1", "return x + 2", False),
        ("fp_package/__init__.py", "", "print('imported')", False),
    ],
)
def test_the_code_that_a_class_uses_and_no_other_is_in_its_digest(
    write: Write, file: str, text: str, by: str, is_same: bool
) -> None:
    write("fp_net.py", NET)
    write("fp_helper.py", "def scale(x):\n    return x\n\ndef unused():\n    return 1\n")
    write("fp_package/__init__.py", "")
    write("fp_package/layers.py", "def shift(x):\n    return x + 1\n\ndef unused(x):\n    return x - 1\n")
    before = digest_of("fp_net.Net")
    write(file, text, by)
    assert (digest_of("fp_net.Net") == before) == is_same


@pytest.mark.parametrize("target", ["torch.nn.Linear", "vae_lab.MseKl", "os.path.join", "nowhere.At", "fp_broken.Net"])
def test_installed_code_has_no_digest(write: Write, target: str) -> None:
    write("fp_broken.py", "class Net(")
    assert digest_of(target) is None


def test_no_code_is_run(write: Write) -> None:
    write("fp_runs.py", "raise SystemExit('run')\nclass Net: pass\n")
    assert digest_of("fp_runs.Net")


def test_a_runs_code_is_that_of_what_changes_its_result(run_of: Compose, write: Write) -> None:
    write("fp_mine.py", "class Block: pass\nclass Watcher: pass\nclass Ema: pass\ndef metric(): pass\n")
    run = run_of(
        "encoder.blocks=[{_target_:fp_mine.Block}]",
        "+callbacks={a:{_target_:fp_mine.Ema},b:{_target_:fp_mine.Watcher,changes_results:false}}",
        "+metrics.further.m={_target_:fp_mine.metric,heading:m,meaning:m}",
    )
    assert [*fingerprint.of_code(run.config)] == ["code of fp_mine.Block", "code of fp_mine.Ema"]


# --- Images ------------------------------------------------------------------------------------------------


def of_folder(folder: Path) -> str:
    return fingerprint.of_files(folder, fingerprint.image_names(folder))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Files of one size each, as bitmaps are."""
    (tmp_path / "images" / "cats").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "images" / "cats" / f"{number}.bmp").write_bytes(bytes([number]) * 3000)
    return tmp_path / "images"


def test_images_are_the_same_in_another_place_at_another_time(images: Path) -> None:
    before = of_folder(images)
    shutil.move(images, images.parent / "moved")
    moved = images.parent / "moved"
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    (moved / "notes.txt").write_text("not an image")
    (moved / ".hidden").mkdir()
    (moved / ".hidden" / "0.bmp").write_bytes(b"x")
    (moved / "cats" / "round").symlink_to(moved)
    assert of_folder(moved) == before


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_other_images_are_others(images: Path, change: str) -> None:
    before = of_folder(images)
    path = images / "cats" / "7.bmp"
    if change == "content":
        path.write_bytes(bytes(3000))
    elif change == "name":
        path.rename(path.with_name("70.bmp"))
    elif change == "more":
        (images / "cats" / "new.PNG").write_bytes(b"x")
    else:
        path.unlink()
    assert of_folder(images) != before


def test_of_many_large_files_a_bounded_part_is_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MOST_READ", 20_000)
    before = of_folder(images)
    for path in images.rglob("*.bmp"):
        path.write_bytes(bytes([99]) * 3000)
    assert of_folder(images) != before


def test_compressed_files_are_the_same_images(run_of: Compose, tmp_path: Path) -> None:
    config = run_of().config.data
    root = Path(str(config.root))  # type: ignore[union-attr]
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (root / "FashionMNIST" / "raw").iterdir():
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        (plain / file.name.removesuffix(".gz")).write_bytes(content)
    expected = fingerprint.of_images(config)
    assert expected
    assert fingerprint.of_images(config.model_copy(update={"root": str(plain)})) == expected
    labels = plain / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\7")
    assert fingerprint.of_images(config.model_copy(update={"root": str(plain)})) != expected
    assert fingerprint.of_images(config.model_copy(update={"root": str(tmp_path)})) == {}


MODULE = """
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

class Images(LightningDataModule):
    def __init__(self, file, image_shape, num_train, batch_size, noise=0.0):
        super().__init__()
        self.file, self.noise = file, noise

    def loader(self, shuffle=False, noise=0.0):
        images = torch.from_numpy(np.load(self.file)) + noise * float(np.random.default_rng().random())
        return DataLoader(images, batch_size=4, shuffle=shuffle)

    def train_dataloader(self):
        return self.loader(True, self.noise)

    def val_dataloader(self):
        return self.loader()
"""


def test_images_of_a_users_module_are_told_by_its_first_batches(run_of: Compose, write: Write, tmp_path: Path) -> None:
    write("fp_data.py", MODULE)
    images = np.random.default_rng(0).random((8, 1, 28, 28), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    keys = ("dataset", "root", "train_images", "test_images", "num_val", "num_test", "subset", "subset_seed",
            "binarize", "binarize_seed")  # fmt: skip
    words = (
        "data._target_=fp_data.Images",
        "+data.file=images.npy",
        "data.num_train=8",
        *(f"~data.{key}" for key in keys),
    )
    settings, random = run_of(*words).config, run_of(*words, "+data.noise=1.0").config
    before = complete(settings)
    assert [*before] == ["images of train", "images of val", "code of fp_data.Images"]
    assert [*complete(random)] == ["images of val", "code of fp_data.Images"]  # else no run would be as before
    np.save(tmp_path / "images.npy", images[::-1])
    forget()
    assert fingerprint.differing(before, complete(settings)) == ["images of train", "images of val"]
    (tmp_path / "images.npy").unlink()
    forget()
    assert [*complete(settings)] == ["code of fp_data.Images"]


# --- Runs --------------------------------------------------------------------------------------------------


def leave(run: Run, *, status: str | None = "finished") -> None:
    """What a run of today's images and code leaves; without a status it was interrupted."""
    (run.directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    results.write_fingerprint(run.directory, complete(run.config))
    if status is None:
        (run.directory / "checkpoints" / "last.ckpt").write_bytes(b"")
        return
    result = results.Result(
        status=status, error=None, cell=run.cell, encoder=run.encoder, decoder=run.decoder, seed=0, overrides=[],
        config_sha256=run.config.sha256(), environment=ENVIRONMENT,
    )  # fmt: skip
    results.write_result(run.directory, result)


def words_for(folder: Path) -> tuple[str, ...]:
    return ("data=image_folder", f"data.root={folder}", "name=x")


@pytest.mark.parametrize("status", ["finished", None], ids=["finished", "interrupted"])
def test_a_run_on_other_images_stops_the_command(run_of: Compose, images: Path, status: str | None) -> None:
    """Seen before: a folder with the same last name was 'finished before, kept', or a run went on with its images."""
    run = run_of(*words_for(images))
    leave(run, status=status)
    other = images.parent / "other" / "images"
    shutil.copytree(images, other)
    checks.check_folders([run_of(*words_for(other))])
    (other / "cats" / "3.bmp").write_bytes(bytes(3000))
    with pytest.raises(ConfigError) as raised:
        checks.check_folders([run_of(*words_for(other))])
    state = "a finished" if status else "an interrupted"
    for part in (f"holds {state} run", "(the images)", "choose another name", "data.dataset=…"):
        assert part in str(raised.value)
    checks.check_folders([run_of(*words_for(other), "data.dataset=other")])
    shutil.rmtree(other)
    checks.check_folders([run_of(*words_for(other))])  # what is not there cannot be compared


def test_a_run_with_other_code_stops_the_command(run_of: Compose, write: Write) -> None:
    write("fp_block.py", "class Block: width = 1\nclass Later: width = 1\n")
    words = ("encoder.blocks=[{_target_:fp_block.Block}]", "name=x")
    leave(run_of(*words))
    write("fp_block.py", "class Block: width = 1  # of it\nclass Later: width = 2\n")
    checks.check_folders([run_of(*words)])
    write("fp_block.py", "class Block: width = 2\n")
    with pytest.raises(ConfigError, match=r"\(the code of fp_block\.Block\); choose another name, or delete"):
        checks.check_folders([run_of(*words)])


def test_failed_runs_and_runs_without_a_fingerprint_stop_nothing(run_of: Compose, images: Path) -> None:
    run = run_of(*words_for(images))
    leave(run, status="failed")
    (images / "cats" / "3.bmp").unlink()
    checks.check_folders([run])
    leave(run)
    (run.directory / results.FINGERPRINT).write_text('{"images": 3}')
    (images / "cats" / "4.bmp").unlink()
    checks.check_folders([run])
    assert isinstance(run.config.data, FolderConfig)


# --- Reports -----------------------------------------------------------------------------------------------


def test_a_seed_on_other_images_is_left_out(tmp_path: Path) -> None:
    for seed, images in enumerate(["a", "a", "b", None]):
        folder = write_run(tmp_path / "x", seed=seed)
        if images:
            results.write_fingerprint(folder, {"images": images})
    study = gather([tmp_path / "x"])
    assert [record.result.seed for record in study.compared] == [0, 1, 3]
    assert study.notes == (
        "vanilla-vanilla/seed-2 is left out: it differs from the other runs of its cell (images is b, not a).",
    )


def test_cells_and_sweeps_on_other_images_are_not_compared(tmp_path: Path) -> None:
    for sweep, encoder, images in (("x", "vanilla", "a"), ("x", "encdec", "b"), ("y", "vanilla", "b")):
        results.write_fingerprint(write_run(tmp_path / sweep, encoder), {"images": images})
    study = gather([tmp_path / "x"])
    assert not study.comparable("test.total")
    assert "vanilla-vanilla: images a" in study.notes[0]
    cells = gather([tmp_path / "x", tmp_path / "y"]).cells
    assert {*cells} == {"vanilla-vanilla@x", "vanilla-vanilla@y", "encdec-vanilla"}
    (tmp_path / "x/encdec-vanilla/seed-0" / results.FINGERPRINT).unlink()
    assert gather([tmp_path / "x"]).comparable("test.total")


def test_code_that_changed_between_cells_is_noted(tmp_path: Path) -> None:
    for encoder, ema in (("vanilla", "1"), ("encdec", "2")):
        folder = write_run(tmp_path / "x", encoder)
        results.write_fingerprint(folder, {"code of mine.Ema": ema, f"code of mine.{encoder}": encoder})
    (note,) = gather([tmp_path / "x"]).notes
    assert "encdec-vanilla: code of mine.Ema 2" in note
    assert "mine.encdec" not in note
