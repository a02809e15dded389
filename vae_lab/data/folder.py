"""Any folder of images."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from vae_lab.config.base import Binarize
from vae_lab.data import derived_seed
from vae_lab.data.batches import Batches, ImageModule, Item, Split, Streamed, order_of
from vae_lab.data.binarize import fixed
from vae_lab.data.devices import fits_in_memory, home_of, megabytes
from vae_lab.data.files import DataError

log = logging.getLogger(__name__)

MODES = {1: "L", 3: "RGB"}


class Files(Dataset[Item]):
    """Image files as tensors of one shape, read on demand.

    An image is resized to cover the required size, and cropped to it around its centre. Its pixels then become 0 or 1
    as `binarize` says, with a separate random stream per image.
    """

    def __init__(
        self,
        paths: list[tuple[str, int]],
        image_shape: tuple[int, int, int],
        binarize: Binarize = "none",
        seed: int = 0,
    ) -> None:
        self.paths = paths
        self.image_shape = image_shape
        self.binarize: Binarize = binarize
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path, label = self.paths[index]
        channels, height, width = self.image_shape
        try:
            with Image.open(path) as file:
                image = file.convert(MODES[channels])
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: the image cannot be read ({error}); mend it or take it away") from error
        scale = max(height / image.height, width / image.width)
        covering = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        if covering != [image.height, image.width]:
            image = resize(image, covering, InterpolationMode.BILINEAR, antialias=True)
        top, left = (image.height - height) // 2, (image.width - width) // 2
        pixels = pil_to_tensor(image.crop((left, top, left + width, top + height)))
        return fixed(pixels, self.binarize, derived_seed(self.seed, "binary", index)), label


class FolderData(ImageModule):
    """The images in a folder: in one folder per class, as for `torchvision.datasets.ImageFolder`, or in no order.

    The splits do not overlap and are drawn by `subset_seed`: first the test images, then the validation images, then
    the training images, so that more training images change neither of the others. Images are kept in memory, on a GPU
    if they fit there. If they fit in neither, workers read them from their files in every epoch.

    Args:
        root: the folder.
        dataset: its name, which distinguishes runs on different images.
        image_shape: channels (1: grey, 3: colour), height and width of every image after resizing.
        num_train: images for training.
        num_val: images for validation.
        num_test: images for testing.
        subset_seed: seed of the draw.
        batch_size: images per step; the last batch of an epoch may be smaller.
        workers: number of processes that read images if they do not fit in memory.
        in_memory: whether images are kept in memory; None decides by their size.
        seed: seed of the order of the training images.
        binarize: see `ImageData`.
        binarize_seed: see `ImageData`.
    """

    def __init__(
        self,
        *,
        root: str,
        dataset: str,
        image_shape: list[int],
        num_train: int,
        num_val: int,
        num_test: int,
        subset_seed: int,
        batch_size: int,
        workers: int,
        in_memory: bool | None = None,
        seed: int = 0,
        binarize: Binarize = "none",
        binarize_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed, binarize, binarize_seed)
        self.root = Path(root)
        self.dataset = dataset
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.counts = {"test": num_test, "val": num_val, "train": num_train}
        self.subset_seed = subset_seed
        self.workers = workers
        self.in_memory = in_memory
        self.classes: list[str] | None = None
        self.files: dict[str, Files] = {}
        self.splits: dict[str, Split] = {}
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Find the files, and read one.

        Raises:
            DataError: if there is no such folder, there are too few images in it, or one cannot be read.
        """
        self._find()
        next(iter(self.files["train"]))

    def setup(self, stage: str | None = None) -> None:
        """Find the files, and read them all if they fit into memory.

        Raises:
            DataError: as `prepare_data`.
        """
        if self._is_set_up:
            return
        self._is_set_up = True
        self._find()
        size = sum(self.counts.values()) * int(np.prod(self.image_shape))
        if self.in_memory is None:
            self.in_memory = fits_in_memory(size)
        storage = "in memory" if self.in_memory else f"read from their files in every epoch, by {self.workers} workers"
        log.info("images: %s of %s, %s", f"{sum(self.counts.values()):,}", megabytes(size), storage)
        if self.in_memory:
            self.splits = {name: _read(files, self.workers) for name, files in self.files.items()}

    def _find(self) -> None:
        if not self.root.is_dir():
            raise DataError(f"there is no folder {self.root}; data.root must name a folder of images")
        classes = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir())
        found: list[tuple[str, int]] = []
        if classes:
            numbers = {name: number for number, name in enumerate(classes)}
            found = make_dataset(self.root, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
            self.classes = classes
        if not found:  # no class folders: all images are of one class
            found = [(str(path), 0) for path in sorted(self.root.rglob("*")) if path.suffix.lower() in IMG_EXTENSIONS]
            self.classes = None
        wanted = sum(self.counts.values())
        if len(found) < wanted:
            counts = " + ".join(f"{self.counts[split]:,}" for split in ("train", "val", "test"))
            tenth = len(found) // 10
            remedy = (
                f"try data.num_train={len(found) - 2 * tenth} data.num_val={tenth} data.num_test={tenth}"
                if tenth
                else f"their names must end in {', '.join(IMG_EXTENSIONS)}"
            )
            raise DataError(
                f"{self.root} has {len(found):,} images, but num_train + num_val + num_test is {counts} = {wanted:,}; "
                f"{remedy}"
            )
        order = order_of(len(found), self.subset_seed, 0).tolist()
        for split, count in self.counts.items():
            paths = [found[index] for index in order[:count]]
            mode: Binarize = "none" if split == "train" and self.binarize == "dynamic" else self.binarize
            self.files[split] = Files(paths, self.image_shape, mode, derived_seed(self.binarize_seed, split))
            order = order[count:]

    def loader(self, split: str, seed: int | None, *, labelled: bool) -> Batches | Streamed:
        """Batches of a split; with a seed their order differs in every epoch."""
        labelled = labelled and self.classes is not None
        size, part, draws = self.size_of_batch(seed), self.part(seed), self.draws_binary(seed)
        files = self.files[split]
        drawn_once = split == "train" and self.binarize == "dynamic" and not draws
        if drawn_once:  # the images in memory still have grey levels
            files = Files(files.paths, files.image_shape, "static", derived_seed(self.binarize_seed, split))
        if not self.in_memory or drawn_once:
            return Streamed(files, size, seed, self.workers, labelled=labelled, part=part, draws_binary=draws)
        images, labels = self.splits[split]
        home = home_of(images.nbytes, self.device())
        classes = labels.to(home) if labelled else None
        return Batches(images.to(home), size, seed, classes, part, draws_binary=draws)


def _read(files: Files, workers: int) -> Split:
    """All images of a split."""
    images = torch.empty((len(files), *files.image_shape), dtype=torch.uint8)
    start = 0
    for batch in Streamed(files, 256, None, workers if len(files) > 1000 else 0).loader:
        images[start : start + len(batch[0])] = batch[0]
        start += len(batch[0])
    labels: Any = [label for _, label in files.paths]
    return Split(images, torch.tensor(labels, dtype=torch.int64))
