"""torchvision's data sets whose class reads all images at once."""

import pkgutil
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from vae_lab.config.base import Binarize
from vae_lab.config.fingerprint import cache_folder
from vae_lab.data import derived_seed
from vae_lab.data.batches import Batches, ImageModule, Split
from vae_lab.data.binarize import fixed
from vae_lab.data.devices import home_of
from vae_lab.data.files import (
    CHECKSUMS,
    DataError,
    check_idx,
    check_sums,
    exclusive,
    find_files,
    write_sums,
)

IDX_SETS = ("MNIST", "FashionMNIST", "KMNIST")
"""Sets with files in the IDX format; for others `root` is the root that torchvision expects."""


class ImageData(ImageModule):
    """A torchvision data set, or a subset of it, kept on the device.

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
        subset: `first` takes images in the order of the files, `random` and `stratified` draw them by
            `subset_seed`, the latter with each class in its proportion.
        subset_seed: seed of that draw.
        batch_size: images per step; the last batch of an epoch may be smaller.
        seed: seed of the order of the training images.
        binarize: `threshold` makes pixels 0 or 1 at 0.5, `static` draws each once with its value as probability,
            `dynamic` draws training images again in every epoch, the others once; `none` leaves them unchanged.
        binarize_seed: seed of the images that are drawn once.
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
        binarize: Binarize = "none",
        binarize_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, binarize, binarize_seed)
        self.dataset = pkgutil.resolve_name(dataset)
        if not isinstance(self.dataset, type):
            raise DataError(f"dataset must name a class such as torchvision.datasets.FashionMNIST, but is {dataset!r}")
        self.root = root
        self.image_shape = tuple(image_shape)
        self.files = {True: train_images, False: test_images}
        self.num_train, self.num_val, self.num_test = num_train, num_val, num_test
        self.subset: Literal["first", "random", "stratified"] = subset
        self.subset_seed = subset_seed
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
                with exclusive(root / name):
                    self.dataset(root, train=train, download=True)
                    raw = root / name / "raw"
                    if (raw / CHECKSUMS).is_file():
                        check_sums(raw, raw)
                    elif raw.is_dir():
                        write_sums(raw)
            except (RuntimeError, OSError) as error:
                raise DataError(
                    f"{name} cannot be downloaded into {root} ({str(error).splitlines()[0]}); mend the network, "
                    "or let data.root name a folder with its files"
                ) from error
        else:
            root = find_files(Path(self.root), name) if name in IDX_SETS else Path(self.root)
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
                f"{root}: the {'training' if train else 'test'} files hold {in_words(images.shape)} images, but "
                f"the configuration says {in_words(expected)}; mend data.image_shape, data.train_images or "
                "data.test_images"
            )
        return Split(images, torch.as_tensor(source.targets))

    def loader(self, split: str, seed: int | None, *, labelled: bool) -> Batches:
        """Batches of a split; with a seed their order differs in every epoch."""
        draws = self.draws_binary(seed)
        images, labels = self.splits[split]
        if not draws:
            images = fixed(images, self.binarize, derived_seed(self.binarize_seed, f"binary {split}"))
        home = home_of(images.nbytes, self.device())
        classes = labels.to(home) if labelled else None
        size, part = self.size_of_batch(seed), self.part(seed)
        return Batches(images.to(home), size, seed, classes, part, draws_binary=draws)


def in_words(shape: tuple[int, ...] | torch.Size) -> str:
    """A number of images and their shape."""
    return f"{shape[0]:,} × " + "×".join(map(str, shape[1:]))


def subset_order(
    labels: Int[Tensor, " n"], subset: Literal["first", "random", "stratified"], seed: int
) -> Int[Tensor, " n"]:
    """The order in which images are chosen: every prefix of it is such a subset.

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
