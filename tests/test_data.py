"""Images: the shipped ones are the official ones, splits do not overlap, damage is reported with its path."""

import gzip
import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from vae_lab.config import PACKAGE
from vae_lab.data import Batches, DataError, ImageData, subset_order
from vae_lab.data.batches import images_of
from vae_lab.data.binarize import drawn, thresholded
from vae_lab.data.shards import WHOLE, Part

BUNDLED = PACKAGE / "assets" / "fashion_mnist_3k"
RAW = Path("FashionMNIST") / "raw"
SUMS = {
    "train-images-idx3-ubyte": "09dd72e74aa8a76feaada262d167edcd489b57bc01d49240b1da1e0f2d395932",
    "train-labels-idx1-ubyte": "bd16d103c66bdc7c4826aef758caccae538e9465d8c4fd0939db7bcb1891a702",
    "t10k-images-idx3-ubyte": "7a6d8e07ea021ec5bc73135ebd0a5770799557ec6f8242d8749c4f32a3cf4643",
    "t10k-labels-idx1-ubyte": "b40abac7ec8228f434940f579deb7cf7b6e3103b5274cb91d1545771f5ef1c8b",
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import make_subset  # noqa: E402


def images(root: Path | str | None = BUNDLED, **changes: Any) -> ImageData:
    settings: dict[str, Any] = {
        "dataset": "torchvision.datasets.FashionMNIST",
        "root": root and str(root),
        "image_shape": [1, 28, 28],
        "train_images": 4000,
        "test_images": 1000,
        "num_train": 3000,
        "num_val": 1000,
        "num_test": 1000,
        "subset": "first",
        "subset_seed": 0,
        "batch_size": 64,
    }
    return ImageData(**settings | changes)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(BUNDLED, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vae_lab"


@pytest.mark.parametrize("name", SUMS)
def test_the_shipped_files_are_the_published_ones(name: str) -> None:
    assert hashlib.sha256((BUNDLED / RAW / name).read_bytes()).hexdigest() == SUMS[name]


def test_the_licence_ships_beside_them() -> None:
    assert "Copyright © 2017 Zalando SE" in (BUNDLED / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the official files (Debian: apt install dataset-fashion-mnist)")
def test_the_script_makes_them_from_the_official_files_byte_for_byte(tmp_path: Path) -> None:
    make_subset.make(DEBIAN, tmp_path)
    for name in ("SHA256SUMS", *(RAW / name for name in SUMS)):
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes()


def test_the_script_takes_only_the_official_files(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not the official file"):
        make_subset.make(copy / RAW, tmp_path / "out")
    with pytest.raises(SystemExit, match="has neither"):
        make_subset.make(tmp_path, tmp_path / "out")


def test_the_first_items_of_an_idx_file() -> None:
    content = b"\0\0\x08\x02" + bytes([0, 0, 0, 3, 0, 0, 0, 2]) + b"abcdef"
    assert make_subset.first(content, 2) == b"\0\0\x08\x02" + bytes([0, 0, 0, 2, 0, 0, 0, 2]) + b"abcd"


def test_torchvision_reads_them() -> None:
    assert FashionMNIST(BUNDLED, train=True).data.shape == (4000, 28, 28)
    assert FashionMNIST(BUNDLED, train=False).data.shape == (1000, 28, 28)


def test_default_splits_are_the_first_images_without_overlap() -> None:
    module = images()
    module.setup()
    train, test = FashionMNIST(BUNDLED, train=True), FashionMNIST(BUNDLED, train=False)
    assert torch.equal(module.splits["train"].images[:, 0], train.data[:3000])
    assert torch.equal(module.splits["val"].images[:, 0], train.data[3000:])
    assert torch.equal(module.splits["test"].images[:, 0], test.data)
    assert torch.equal(module.splits["val"].labels, train.targets[3000:])


@pytest.mark.parametrize("subset", ["first", "random", "stratified"])
def test_validation_images_stay_the_same_when_num_train_changes(subset: str) -> None:
    few, many = images(subset=subset, num_train=500, num_val=700), images(subset=subset, num_val=700)
    few.setup()
    many.setup()
    assert torch.equal(few.splits["val"].images, many.splits["val"].images)
    assert torch.equal(few.splits["train"].images, many.splits["train"].images[:500])


@pytest.mark.parametrize("subset", ["first", "random", "stratified"])
def test_training_and_validation_images_never_overlap(subset: str) -> None:
    module = images(subset=subset, num_train=700, num_val=300)
    module.setup()
    seen = [{image.numpy().tobytes() for image in module.splits[split].images} for split in ("train", "val")]
    assert len(seen[0]) + len(seen[1]) == 1000
    assert not seen[0] & seen[1]


def test_subsets_are_drawn_by_their_seed() -> None:
    labels = torch.arange(10).repeat(40)
    for subset in ("random", "stratified"):
        order = subset_order(labels, subset, 1)
        assert sorted(order.tolist()) == list(range(400))
        assert torch.equal(order, subset_order(labels, subset, 1))
        assert not torch.equal(order, subset_order(labels, subset, 2))
    assert subset_order(labels, "first", 1).tolist() == list(range(400))


@pytest.mark.parametrize("count", [10, 100, 333])
def test_a_stratified_subset_has_each_class_in_its_proportion(count: int) -> None:
    labels = torch.cat([torch.zeros(600), torch.ones(300), torch.full((100,), 2)]).long()
    taken = labels[subset_order(labels, "stratified", 0)[:count]]
    for label, share in enumerate((0.6, 0.3, 0.1)):
        assert abs((taken == label).sum().item() - share * count) <= 1


def test_batches_hold_every_image_once_in_the_range_of_0_to_1() -> None:
    store = torch.arange(250, dtype=torch.uint8).reshape(250, 1, 1, 1).expand(250, 1, 2, 2).contiguous()
    batches = list(Batches(store, 64, seed=0))
    assert [len(batch) for batch in batches] == [64, 64, 64, 58]
    assert len(Batches(store, 64)) == 4
    values = torch.cat(batches)[:, 0, 0, 0]
    assert torch.equal((values * 255).round().sort().values, torch.arange(250.0))
    assert values.dtype == torch.float32
    assert values.max() <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    store = torch.arange(200, dtype=torch.uint8).reshape(200, 1, 1, 1)

    def order(seed: int | None, epoch: int) -> list[float]:
        batches = Batches(store, 7, seed)
        batches.set_epoch(epoch)
        torch.manual_seed(torch.randint(10**6, ()).item())  # the global stream has no part in it
        return torch.cat(list(batches)).flatten().tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(None, 3) == sorted(order(0, 0))


def test_colour_images_are_contiguous_for_code_that_views_them() -> None:
    (batch,) = Batches(torch.zeros(4, 3, 8, 8, dtype=torch.uint8).to(memory_format=torch.channels_last), 4)
    assert batch.view(4, -1).shape == (4, 192)


def test_a_folder_of_gzip_files_is_decompressed_once(tmp_path: Path, cache: Path) -> None:
    for name in SUMS:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((BUNDLED / RAW / name).read_bytes()))
    module, again = images(tmp_path), images(tmp_path)
    module.setup()
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*-ubyte")}
    assert len(made) == 4
    again.setup()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*-ubyte")} == made
    assert torch.equal(module.splits["test"].images, again.splits["test"].images)


def test_a_damaged_copy_in_the_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    for name in SUMS:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((BUNDLED / RAW / name).read_bytes()))
    images(tmp_path).prepare_data()
    made = next(cache.rglob("train-images-idx3-ubyte"))
    content = made.read_bytes()
    made.write_bytes(content[:5000] + bytes(200) + content[5200:])
    images(tmp_path).prepare_data()
    assert next(cache.rglob("train-images-idx3-ubyte")).read_bytes() == content


def test_damage_to_downloaded_files_is_reported(cache: Path) -> None:
    raw = cache / RAW
    shutil.copytree(BUNDLED / RAW, raw)  # as torchvision leaves it
    images(None).prepare_data()
    file = raw / "t10k-images-idx3-ubyte"
    content = file.read_bytes()
    file.write_bytes(content[:5000] + bytes(200) + content[5200:])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: the file is damaged, its checksum is not that"):
        images(None).prepare_data()


def test_plain_files_in_a_folder_are_found(tmp_path: Path, cache: Path) -> None:
    for name in SUMS:
        shutil.copy(BUNDLED / RAW / name, tmp_path)
    images(tmp_path).setup()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.unlink(), "the file is missing"),
        (lambda file: os.truncate(file, 5000), "the file is damaged"),
        (lambda file: os.truncate(file, 0), "the file is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"), "its checksum is not"),
    ],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_missing_and_damaged_files_are_named_with_a_remedy(copy: Path, name: str, harm: Any, words: str) -> None:
    harm(copy / RAW / name)
    with pytest.raises(DataError) as raised:
        images(copy).prepare_data()
    assert str(copy / RAW / name) in str(raised.value)
    assert words in str(raised.value)
    assert "; " in str(raised.value)


@pytest.mark.parametrize("size", [0, 3, 10, 5000])
def test_without_checksums_the_header_shows_damage(copy: Path, size: int) -> None:
    (copy / "SHA256SUMS").unlink()
    os.truncate(copy / RAW / "train-images-idx3-ubyte", size)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: the file is damaged"):
        images(copy).prepare_data()


@pytest.mark.parametrize("end", [True, False])
def test_a_damaged_gzip_file_is_reported(tmp_path: Path, cache: Path, end: bool) -> None:
    for name in SUMS:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((BUNDLED / RAW / name).read_bytes()))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    if end:
        os.truncate(file, 1000)
    else:
        content = file.read_bytes()
        file.write_bytes(content[:5000] + bytes(200) + content[5200:])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: the file is damaged"):
        images(tmp_path).prepare_data()


def test_a_download_that_fails_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    with pytest.raises(DataError, match=r"cannot be downloaded.*data\.root"):
        images(None).prepare_data()


def test_a_folder_without_files_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files of FashionMNIST"):
        images(tmp_path).prepare_data()
    with pytest.raises(DataError, match="there is no folder"):
        images(tmp_path / "nowhere").prepare_data()


@pytest.mark.parametrize(
    "change", [{"train_images": 60000}, {"test_images": 10000}, {"image_shape": [3, 32, 32]}], ids=str
)
def test_files_that_are_not_what_the_configuration_says_are_reported(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the configuration says"):
        images(**change).prepare_data()


# --- Binary images -----------------------------------------------------------------------------------------

MODES = ("threshold", "static", "dynamic")
FEW = {"num_train": 70, "num_val": 30, "num_test": 40, "batch_size": 32}


def binary(mode: str, **changes: Any) -> ImageData:
    data = images(binarize=mode, **FEW | changes)
    data.setup()
    return data


def passes(loader: Batches, epochs: Sequence[int] = (0, 1)) -> list[Tensor]:
    """All images of a loader, in each of these epochs."""
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        found.append(torch.cat([images_of(batch) for batch in loader]))
    return found


def loaders(data: ImageData) -> dict[str, Batches]:
    return {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}


@pytest.mark.parametrize("mode", MODES)
def test_binary_images_have_no_values_but_0_and_1(mode: str) -> None:
    data = binary(mode)
    for loader in (*loaders(data).values(), data.labelled("train")):
        for found in passes(loader):
            assert found.unique().tolist() == [0, 1]


def test_grey_images_stay_as_they_are() -> None:
    data = binary("none")
    for split, loader in loaders(data).items():
        assert torch.equal(loader.images, data.splits[split].images)


def test_a_threshold_lies_at_one_half() -> None:
    levels = torch.tensor([0, 1, 127, 128, 254, 255], dtype=torch.uint8)
    assert thresholded(levels).tolist() == [0, 0, 0, 255, 255, 255]
    data = binary("threshold")
    for split in ("val", "test"):
        (found,) = passes(loaders(data)[split], [0])
        assert torch.equal(found, (data.splits[split].images / 255 > 0.5).float())


def test_a_pixel_is_drawn_with_its_level_as_probability() -> None:
    levels = torch.tensor([0, 1, 51, 128, 254, 255], dtype=torch.uint8)
    found = drawn(levels.repeat(100_000, 1), torch.Generator().manual_seed(0)).double().mean(0) / 255
    torch.testing.assert_close(found, levels.double() / 255, rtol=0, atol=0.005)
    assert (found[0], found[-1]) == (0, 1)  # black and white are certain


@pytest.mark.parametrize("mode", MODES)
def test_held_out_images_are_the_same_in_each_epoch_of_every_run(mode: str) -> None:
    for split in ("val", "test"):
        first, again = passes(loaders(binary(mode))[split])
        (other,) = passes(loaders(binary(mode, seed=5))[split], [0])
        assert torch.equal(first, again)
        assert torch.equal(first, other)
        (drawn_again,) = passes(loaders(binary(mode, binarize_seed=1))[split], [0])
        assert torch.equal(first, drawn_again) == (mode == "threshold")


def test_dynamic_training_images_differ_between_epochs_and_are_repeated_by_their_seed() -> None:
    first, second = passes(binary("dynamic").train_dataloader())
    again = passes(binary("dynamic").train_dataloader())
    other, _ = passes(binary("dynamic", seed=1).train_dataloader())
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    grey = passes(binary("none").train_dataloader())
    assert not torch.equal(first[grey_order(grey[0])], second[grey_order(grey[1])])  # of the same images
    assert not torch.equal(first, other)


def grey_order(images: Tensor) -> Tensor:
    """An order of images that does not depend on the one that they have."""
    return torch.tensor(sorted(range(len(images)), key=lambda index: images[index].numpy().tobytes()))


@pytest.mark.parametrize("mode", ["threshold", "static"])
def test_other_training_images_are_the_same_in_each_epoch(mode: str) -> None:
    first, second = passes(binary(mode).train_dataloader())
    assert not torch.equal(first, second)  # in another order
    assert torch.equal(first[grey_order(first)], second[grey_order(second)])


def test_the_order_of_the_images_is_that_of_grey_ones() -> None:
    for binary_ones, grey in zip(
        passes(binary("dynamic").train_dataloader()), passes(binary("none").train_dataloader()), strict=True
    ):
        certain = (grey == 0) | (grey == 1)
        assert torch.equal(binary_ones[certain], grey[certain])


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_that_share_a_batch_draw_what_one_draws_alone(processes: int) -> None:
    store = torch.randint(256, (21, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def batches(part: Part) -> list[Tensor]:
        loader = Batches(store, 5, 3, None, part, draws_binary=True)
        loader.set_epoch(2)
        return list(loader)

    shared = [batches(Part(rank, processes)) for rank in range(processes)]
    for number, whole in enumerate(batches(WHOLE)):
        for rank, own in enumerate(shared):
            assert torch.equal(own[number], whole[Part(rank, processes).taken(len(whole))])
