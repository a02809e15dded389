"""Folders of images: classes or none, any size, splits by seed, in memory or read as they are wanted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose
from PIL import Image

from vae_lab import results
from vae_lab.config import ConfigError
from vae_lab.data import Batches, DataError, FolderData, Streamed
from vae_lab.data.shards import WHOLE, Part
from vae_lab.training import runner

KINDS = ("boots", "coats", "hats")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """30 colour images of 12×16 pixels in three classes; the red of each is its number."""
    random = np.random.default_rng(0)
    for number in range(30):
        pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        pixels[..., 0] = number
        folder = tmp_path / "clothes" / KINDS[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "clothes"


def images(root: Path, **changes: Any) -> FolderData:
    settings: dict[str, Any] = {
        "root": str(root), "dataset": "clothes", "image_shape": [3, 12, 12], "num_train": 16, "num_val": 6,
        "num_test": 8, "subset_seed": 0, "batch_size": 5, "workers": 0, "in_memory": True,
    }  # fmt: skip
    data = FolderData(**settings | changes)
    data.prepare_data()
    data.setup()
    return data


def numbers(data: FolderData, split: str) -> list[int]:
    return [int(image[0, 0, 0] * 255 + 0.5) for batch, _ in data.labelled(split) for image in batch]


def test_the_splits_are_drawn_without_overlap_and_known_by_their_classes(root: Path) -> None:
    data = images(root)
    found = {split: numbers(data, split) for split in ("train", "val", "test")}
    assert {split: len(one) for split, one in found.items()} == {"train": 16, "val": 6, "test": 8}
    assert len({number for one in found.values() for number in one}) == 30
    assert data.classes == [*KINDS]
    labels = [int(label) for _, batch in data.labelled("test") for label in batch]
    assert labels == [number % 3 for number in found["test"]]


def test_more_training_images_change_neither_the_validation_nor_the_test(root: Path) -> None:
    few, many = images(root, num_train=4), images(root)
    for split in ("val", "test"):
        assert numbers(few, split) == numbers(many, split)
    assert numbers(few, "train") == numbers(many, "train")[:4]
    assert numbers(images(root, subset_seed=1), "test") != numbers(many, "test")


def test_images_are_brought_to_the_shape_that_was_asked_for(root: Path) -> None:
    (batch,) = images(root, image_shape=[3, 12, 12], batch_size=16).train_dataloader()
    assert batch.shape == (16, 3, 12, 12)
    assert batch.min() >= 0
    assert batch.max() <= 1
    # The middle of the image, its pixels as they are.
    with Image.open(root / KINDS[7 % 3] / "7.png") as file:
        middle = torch.from_numpy(np.asarray(file)[:, 2:14].copy()).permute(2, 0, 1) / 255
    assert any(torch.allclose(image, middle) for split in ("train", "val", "test") for image in
               torch.cat([batch for batch, _ in images(root).labelled(split)]))  # fmt: skip
    (grey,) = images(root, image_shape=[1, 6, 20], batch_size=16).train_dataloader()
    assert grey.shape == (16, 1, 6, 20)


def test_a_folder_without_classes_will_do(root: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in root.rglob("*.png"):
        shutil.copy(file, flat)
    (flat / "notes.txt").write_text("not an image")
    data = images(flat)
    assert data.classes is None
    (batch,) = images(flat, batch_size=16).train_dataloader()
    assert batch.shape == (16, 3, 12, 12)
    assert isinstance(images(flat, in_memory=None).train_dataloader(), Batches)  # so few fit into memory
    assert all(isinstance(batch, torch.Tensor) for batch in data.test_dataloader())


def test_read_as_they_are_wanted_they_come_in_the_same_order(root: Path) -> None:
    kept, streamed = images(root), images(root, in_memory=False)
    one, other = kept.train_dataloader(), streamed.train_dataloader()
    assert isinstance(other, Streamed)
    assert len(one) == len(other) == 4
    for epoch in (0, 1):
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert numbers(kept, "test") == numbers(streamed, "test")


@pytest.mark.parametrize("mode", ["threshold", "static", "dynamic"])
def test_binary_images_are_the_same_in_memory_and_from_their_files(root: Path, mode: str) -> None:
    kept, streamed = (images(root, binarize=mode, in_memory=in_memory) for in_memory in (True, False))
    for split in ("train", "val", "test"):
        one, other = (torch.cat([batch for batch, _ in data.labelled(split)]) for data in (kept, streamed))
        assert one.unique().tolist() == [0, 1]
        assert torch.equal(one, other)
    epochs = []
    for epoch in (0, 1):
        one, other = kept.train_dataloader(), streamed.train_dataloader()
        one.set_epoch(epoch)
        other.set_epoch(epoch)
        epochs.append(torch.cat(list(one)))
        assert epochs[-1].unique().tolist() == [0, 1]
        assert torch.equal(epochs[-1], torch.cat(list(other)))
    in_any_order = [sorted(image.numpy().tobytes() for image in epoch) for epoch in epochs]
    assert (in_any_order[0] == in_any_order[1]) == (mode != "dynamic")


@pytest.mark.parametrize("in_memory", [True, False])
def test_processes_that_share_a_folder_draw_what_one_draws_alone(
    root: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(part: Part) -> list[torch.Tensor]:
        monkeypatch.setattr("vae_lab.data.batches.mine", lambda: part)
        loader = images(root, binarize="dynamic", in_memory=in_memory).train_dataloader()
        loader.set_epoch(1)
        return list(loader)

    whole, *shared = batches(WHOLE), batches(Part(0, 2)), batches(Part(1, 2))
    for rank, own in enumerate(shared):
        assert all(
            torch.equal(some, every[Part(rank, 2).taken(len(every))]) for some, every in zip(own, whole, strict=True)
        )


def test_a_training_on_a_folder_is_the_same_in_memory_and_from_its_files(run_of: Compose, root: Path) -> None:
    words = (
        "data=image_folder", f"data.root={root}", "data.image_shape=[3,12,12]", "data.num_train=16", "data.num_val=6",
        "data.num_test=8", "data.batch_size=5", "latent.dim=4", "trainer.max_epochs=2", "trainer.threads=1",
        "logger=csv", "callbacks=quiet", "metrics=full", "metrics.iwae=[1,2]",
    )  # fmt: skip
    kept = runner.run(run_of(*words, "data.in_memory=true", "name=kept"))
    streamed = runner.run(run_of(*words, "data.in_memory=false", "data.workers=1", "name=streamed"))
    assert kept.finished, kept.error
    assert [*results.read_fingerprint(run_of(*words, "data.in_memory=true", "name=kept").directory)] == ["images"]
    assert (kept.train, kept.val, kept.test) == (streamed.train, streamed.val, streamed.test)
    assert kept.test.probe_accuracy is not None
    assert kept.test.fid_samples is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "data.root: is missing; give it: data.root=…"),
        (("data.root=nowhere",), "there is no folder nowhere; data.root must name a folder of images"),
        (("data.root=.", "data.num_test=10"), "has 30 images, but num_train + num_val + num_test is"),
        (("data.root=.",), "try data.num_train=24 data.num_val=3 data.num_test=3"),
        (("data.root=.", "data.image_shape=[2,8,8]"), "must have 1 channel (grey) or 3 (colour)"),
        (("data.root=.", "+data.train_images=9"), "data.train_images: no such key"),
        (("data.root=.", "+data.wrokers=9"), "did you mean 'workers'?"),
    ],
)
def test_what_is_wrong_is_reported(
    words: tuple[str, ...], message: str, run_of: Compose, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError) as raised:
        runner.check_data(run_of("data=image_folder", *words).config)
    assert message in str(raised.value)


def test_an_image_that_cannot_be_read_is_named(root: Path) -> None:
    for file in (root / KINDS[1]).glob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"coats/\d+\.png: the image cannot be read"):
        images(root)


def test_runs_on_another_folder_are_other_runs_and_a_moved_folder_is_the_same(run_of: Compose, root: Path) -> None:
    moved = root.parent / "elsewhere" / "clothes"
    other = root.parent / "shoes"
    for place in (moved, other):
        shutil.copytree(root, place)
    here, there, apart = (run_of("data=image_folder", f"data.root={place}").config for place in (root, moved, other))
    assert here.sha256() == there.sha256()
    assert here.sha256() != apart.sha256()
    streamed = run_of("data=image_folder", f"data.root={root}", "data.in_memory=false", "data.workers=7")
    assert streamed.config.sha256() == here.sha256()


def save(path: Path, size: tuple[int, int] = (12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(list(path.parent.iterdir()))).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def copies(root: Path) -> None:
    (root / ".ipynb_checkpoints").mkdir()
    shutil.copy(root / "boots" / "0.png", root / ".ipynb_checkpoints" / "0-checkpoint.png")


def from_a_mac(root: Path) -> None:
    shutil.copytree(root / "boots", root / "__MACOSX" / "boots")
    (root / "boots" / "._0.png").write_bytes(b"\0\5\26\7")
    (root / "boots" / ".DS_Store").touch()


def a_circle_of_links(root: Path) -> None:
    (root / "again").symlink_to(root)
    (root / "boots" / "up").symlink_to("../..")
    (root / "aaa").symlink_to(root / "hats")


def links_to_images(root: Path) -> None:
    (root / "aaa").mkdir()
    (root / "aaa" / "x.png").symlink_to(root / "hats" / "2.png")
    os.link(root / "hats" / "2.png", root / "hats" / "same.png")


def other_files(root: Path) -> None:
    (root / "labels.csv").touch()
    (root / "boots" / "Thumbs.db").touch()
    (root / "empty").mkdir()
    (root / "notes").symlink_to("nowhere")


@pytest.mark.parametrize("add", [copies, from_a_mac, a_circle_of_links, links_to_images, other_files])
def test_each_image_counts_once_and_what_is_no_image_not_at_all(root: Path, add: Callable[[Path], None]) -> None:
    before = images(root)
    add(root)
    after = images(root)
    assert after.classes == [*KINDS]
    assert {split: files.paths for split, files in after.files.items()} == {
        split: files.paths for split, files in before.files.items()
    }


def beside_classes(root: Path) -> None:
    save(root / "cover.png")


def beside_a_nested_folder(root: Path) -> None:
    shutil.move(root / "hats", root / "hats.png")  # a folder all the same
    save(root / "LAST.JPG")


def divided_and_more(root: Path) -> None:
    for old, new in zip(KINDS, ("train", "Test", "unlabelled"), strict=True):
        (root / old).rename(root / new)


def without_train(root: Path) -> None:
    shutil.rmtree(root / "hats")
    for old, new in zip(KINDS, ("test", "valid"), strict=False):
        (root / old).rename(root / new)


def a_pipe(root: Path) -> None:
    os.mkfifo(root / "hats" / "pipe.png")


def a_broken_link(root: Path) -> None:
    (root / "hats" / "gone.png").symlink_to("nowhere.png")


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (
            beside_classes,
            ("has images of its own (1, such as {root}/cover.png) beside folders of images (30, such as ",),
        ),
        (beside_a_nested_folder, ("{root}/LAST.JPG", "{root}/boots/0.png")),
        (divided_and_more, ("divided into Test and train, but has the folder {root}/unlabelled too",)),
        (without_train, ("{root} has test and valid but no train",)),
        (a_pipe, ("{root}/hats/pipe.png: the image cannot be read (it is no file)",)),
        (a_broken_link, ("{root}/hats/gone.png: the image cannot be read (No such file or directory)",)),
    ],
)
def test_images_that_would_be_passed_over_are_named(
    root: Path, add: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    add(root)
    with pytest.raises(DataError) as raised:
        images(root)
    assert all(word.format(root=root) in str(raised.value) for word in words), raised.value


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: str) -> Any:
        if str(path).endswith("hats"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    scan = os.scandir
    monkeypatch.setattr("vae_lab.data.tree.os.scandir", refusing)
    with pytest.raises(DataError, match="hats: the folder cannot be read"):
        images(root)


def test_splits_come_from_folders_of_their_names(tmp_path: Path) -> None:
    for kind in KINDS:
        for number in range(8):
            save(tmp_path / "clothes" / "Train" / kind / f"{number}.png")
        save(tmp_path / "clothes" / "test" / kind / "0.JPEG")
    data = images(tmp_path / "clothes", num_train=18, num_val=6, num_test=3)
    folders = {split: {Path(path).parts[-3] for path, _ in files.paths} for split, files in data.files.items()}
    assert folders == {"train": {"Train"}, "val": {"Train"}, "test": {"test"}}
    assert data.classes == [*KINDS]
    assert len({path for files in data.files.values() for path, _ in files.paths}) == 27
    with pytest.raises(DataError, match="3 images for test, but num_test is 4; "):
        images(tmp_path / "clothes", num_train=18, num_val=6, num_test=4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_every_file_is_checked_before_the_first_run_and_once(
    run_of: Compose, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "flat"
    for number in range(20):
        save(root / f"{number}.{suffix}")
    words = (
        "data=image_folder", f"data.root={root}", "data.image_shape=[3,12,12]", "data.num_train=10", "data.num_val=4",
        "data.num_test=6", "data.in_memory=false",
    )  # fmt: skip
    settings = run_of(*words).config
    whole = {path: path.read_bytes() for path in root.iterdir()}
    for path in whole:
        path.write_bytes(whole[path][:-40])
    with pytest.raises(ConfigError) as raised:
        runner.check_data(settings)
    assert str(raised.value).count("the image cannot be read") == 5
    assert str(raised.value).endswith("; and 15 more")
    for path, content in whole.items():
        path.write_bytes(content)
    runner.check_data(settings)
    monkeypatch.setattr("vae_lab.data.folder.check_image", lambda *arguments: pytest.fail("checked again"))
    runner.check_data(settings)


def test_the_default_background_is_part_of_no_checksum(run_of: Compose, root: Path) -> None:
    white, black = (
        run_of("data=image_folder", f"data.root={root}", f"data.background={one}").config for one in ("white", "black")
    )
    assert "data.background" not in white.identity()
    assert white.sha256() != black.sha256()
