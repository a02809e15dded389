"""Images: from files to training, validation and test tensors, and from those to batches on the model's device."""

import gzip
import hashlib
import os
import pkgutil
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor

CHECKSUMS = "SHA256SUMS"
EVALUATION_BATCH = 128


class DataError(ValueError):
    """Files that are missing, damaged or not what the configuration says, with the path and what to do."""


class Split(NamedTuple):
    """The images of one split, a byte a pixel, and their classes."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]


Batch = Float[Tensor, "b c h w"] | tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]]
"""Images with values in [0, 1], or these and their classes."""


class Batches:
    """Batches of tensors that are already where the model is; the loader that Lightning iterates over.

    With a `seed` the images come in another order each pass. The order depends on the seed and the number of
    the pass alone, so that every model sees the same one and a later process can repeat it. With `labels` a batch is a
    pair of images and labels.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        batch_size: int,
        seed: int | None = None,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.labels = labels
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = self._order().to(self.images.device)
        for indices in torch.split(order, self.batch_size):
            images = _as_float(self.images[indices])
            yield images if self.labels is None else (images, self.labels[indices])

    def _order(self) -> Int[Tensor, " n"]:
        if self.seed is None:
            return torch.arange(len(self.images))
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.epoch))
        return torch.randperm(len(self.images), generator=generator)


def _as_float(images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def derived_seed(seed: int, purpose: str, number: int = 0) -> int:
    """A seed of its own for each purpose and epoch of a run: streams that do not overlap."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


class ImageData(LightningDataModule):
    """A torchvision data set, a subset of it, held on the device.

    Training and validation images come from the set's training files, without overlap, test images from its
    test files: the first `num_test` of them, so that every model is tested on the same ones.

    Args:
        dataset: dotted name of a class such as `torchvision.datasets.FashionMNIST`.
        root: folder with the set's files, plain or compressed by gzip, there or in torchvision's sub-folders;
            None downloads them once into the user's cache.
        image_shape: channels, height and width of the images in the files.
        train_images: how many images the training files hold.
        test_images: how many the test files hold.
        num_train: images for training.
        num_val: images for validation.
        num_test: images for testing.
        subset: `first` takes images in the order of the files, `random` and `stratified` as `subset_seed` draws
            them, the latter with each class in its proportion.
        subset_seed: seed of that draw.
        batch_size: images a step; the last batch of an epoch may be smaller.
        seed: seed of the order of the training images.
    """

    def __init__(
        self,
        *,
        dataset: str,
        root: str | None,
        image_shape: list[int],
        train_images: int,
        test_images: int,
        num_train: int,
        num_val: int,
        num_test: int,
        subset: Literal["first", "random", "stratified"],
        subset_seed: int,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dataset = pkgutil.resolve_name(dataset)
        if not isinstance(self.dataset, type):
            raise DataError(f"dataset must name a class such as torchvision.datasets.FashionMNIST, but is {dataset!r}")
        self.root = root
        self.image_shape = tuple(image_shape)
        self.files = {True: train_images, False: test_images}
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test
        self.subset: Literal["first", "random", "stratified"] = subset
        self.subset_seed = subset_seed
        self.batch_size = batch_size
        self.seed = seed
        self.splits: dict[str, Split] = {}

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, if the data set has any."""
        return getattr(self.dataset, "classes", None)

    def prepare_data(self) -> None:
        """Find or fetch the files, and read them once.

        Raises:
            DataError: if they are missing, damaged, or hold other images than configured.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read the splits into memory."""
        if self.splits:
            return
        train, test = self._read(train=True), self._read(train=False)
        order = subset_order(train.labels, self.subset, self.subset_seed)
        # From the end, so that the validation images stay the same when num_train changes.
        picked = order[: self.num_train], order[len(order) - self.num_val :]
        self.splits = {
            "train": Split(train.images[picked[0]], train.labels[picked[0]]),
            "val": Split(train.images[picked[1]], train.labels[picked[1]]),
            "test": Split(test.images[: self.num_test], test.labels[: self.num_test]),
        }

    def _read(self, *, train: bool) -> Split:
        name = self.dataset.__name__
        if self.root is None:
            root = cache_folder()
            try:
                with _exclusive(root / name):
                    self.dataset(root, train=train, download=True)
            except (RuntimeError, OSError) as error:
                raise DataError(
                    f"{name} cannot be downloaded into {root} ({str(error).splitlines()[0]}); mend the network, "
                    "or let data.root name a folder with its files"
                ) from error
        else:
            root = find_files(Path(self.root), name)
        for path in sorted((root / name / "raw").glob("*-ubyte")):
            check_idx(path)
        try:
            source = self.dataset(root, train=train, download=False)
        except (RuntimeError, OSError, ValueError, EOFError) as error:
            raise DataError(f"{root}: {name} cannot be read from there ({error})") from error
        images = torch.as_tensor(source.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        expected = (self.files[train], *self.image_shape)
        if tuple(images.shape) != expected:
            raise DataError(
                f"{root}: the {'training' if train else 'test'} files hold {_shape(images.shape)} images, but "
                f"the configuration says {_shape(expected)}; mend data.image_shape, data.train_images or "
                "data.test_images"
            )
        return Split(images, torch.as_tensor(source.targets))

    def _batches(self, split: str, seed: int | None = None, *, labelled: bool = False) -> Batches:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        images, labels = (part.to(device) for part in self.splits[split])
        return Batches(
            images, EVALUATION_BATCH if seed is None else self.batch_size, seed, labels if labelled else None
        )

    def labelled(self, split: str) -> Batches:
        """Batches of a split's images and classes, in the order of the files; models never train on these."""
        return self._batches(split, labelled=True)

    def train_dataloader(self) -> Batches:
        """Batches of the training images, in another order each epoch."""
        return self._batches("train", self.seed)

    def val_dataloader(self) -> Batches:
        """Batches of the validation images."""
        return self._batches("val")

    def test_dataloader(self) -> Batches:
        """Batches of the test images and their classes."""
        return self.labelled("test")

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Nothing to do: the images are there already."""
        return batch


def _shape(shape: tuple[int, ...] | torch.Size) -> str:
    return f"{shape[0]:,} × " + "×".join(map(str, shape[1:]))


def subset_order(
    labels: Int[Tensor, " n"], subset: Literal["first", "random", "stratified"], seed: int
) -> Int[Tensor, " n"]:
    """The order in which images are taken: every prefix of it is such a subset.

    `stratified` spreads each class evenly over the order, so that a prefix has each class in its proportion.
    """
    if subset == "first":
        return torch.arange(len(labels))
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if subset == "random":
        return shuffled
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in torch.unique(labels):
        members = shuffled[labels[shuffled] == label]
        position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    # The shuffle breaks the ties between classes.
    return shuffled[torch.argsort(position[shuffled], stable=True)]


# --- Files -------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where downloaded and decompressed sets are kept: `$XDG_CACHE_HOME/vae_lab` or `~/.cache/vae_lab`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae_lab"


def _exclusive(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def find_files(root: Path, name: str) -> Path:
    """A folder from which torchvision's class `name` reads the IDX files that lie under `root`.

    Files where torchvision wants them (`root/<name>/raw`) are used in place; others, and those compressed by
    gzip, are copied once into the cache.

    Raises:
        DataError: if there are none, or they do not have their checksums.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; data.root must name one that holds the files of {name}")
    places = [root / name / "raw", root]
    for place in places:
        # In this order a plain file takes the place of the same one compressed.
        found = {path.name.removesuffix(".gz"): path for path in sorted(place.glob("*-ubyte*"), reverse=True)}
        wanted = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        if not found:
            continue
        missing = [file for file in wanted if file not in found]
        if missing:
            raise DataError(f"{place / missing[0]}: the file is missing; {_remedy(root)}")
        check_sums(place.parents[1] if place != root else place, root)
        if place == places[0] and all(path.suffix != ".gz" for path in found.values()):
            return root
        return _into_cache(root, name, [found[file] for file in wanted])
    raise DataError(
        f"{root} holds no files of {name}, such as train-images-idx3-ubyte.gz; data.root must name their folder"
    )


def _into_cache(root: Path, name: str, files: list[Path]) -> Path:
    stamp = "".join(f"{path.resolve()}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in files)
    target = cache_folder() / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    with _exclusive(target):
        if (target / name / "raw").is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=target) as temporary:
            for path in files:
                opener = gzip.open if path.suffix == ".gz" else open
                try:
                    with opener(path, "rb") as source, open(Path(temporary) / path.stem, "wb") as copy:
                        shutil.copyfileobj(source, copy)
                except (OSError, EOFError, zlib.error) as error:
                    raise DataError(f"{path}: the file is damaged ({error}); {_remedy(root)}") from error
            raw = target / name / "raw"
            raw.parent.mkdir(exist_ok=True)
            shutil.copytree(temporary, raw.with_name("raw.partial"), dirs_exist_ok=True)
            os.replace(raw.with_name("raw.partial"), raw)
    return target


def check_sums(folder: Path, root: Path) -> None:
    """Hold the files named in `folder`'s SHA256SUMS, if it has one, against their checksums.

    Raises:
        DataError: for the first file that differs.
    """
    listing = folder / CHECKSUMS
    if not listing.is_file():
        return
    for line in listing.read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: the file is missing; {_remedy(root)}")
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise DataError(f"{path}: the file is damaged, its checksum is not that in {CHECKSUMS}; {_remedy(root)}")


def check_idx(path: Path) -> None:
    """Hold an IDX file's length against its header.

    Raises:
        DataError: if it is too short to have a header, or longer or shorter than the header says.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        dimensions = head[3] if len(head) == 4 and head[:3] == b"\0\0\x08" else 0
        sizes = file.read(4 * dimensions)
    if not dimensions or len(sizes) < 4 * dimensions:
        raise DataError(f"{path}: the file is damaged, it does not begin as an IDX file; {_remedy(path)}")
    expected = 4 + 4 * dimensions + int(np.prod(struct.unpack(f">{dimensions}I", sizes)))
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"{path}: the file is damaged, its header makes it {expected:,} bytes and it has {size:,}; {_remedy(path)}"
        )


def _remedy(path: Path) -> str:
    if Path(__file__).parent in path.parents:
        return "put it back: git checkout the file, or install vae_lab again from where you have it"
    if cache_folder() in path.parents:
        return "delete it, and it will be made again"
    return "replace it, or leave out data.root and it will be downloaded"
