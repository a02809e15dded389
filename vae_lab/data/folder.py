"""Any folder of images."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch.utils.data import Dataset
from torchvision.transforms.functional import InterpolationMode, pil_to_tensor, resize

from vae_lab.config.base import Background, Binarize
from vae_lab.config.fingerprint import cache_folder
from vae_lab.config.images import IMAGE_ENDINGS, ImageFile, image_files
from vae_lab.config.terminal import watched
from vae_lab.data import derived_seed
from vae_lab.data.batches import Batches, ImageModule, Item, Split, Streamed, order_of
from vae_lab.data.binarize import fixed
from vae_lab.data.devices import fits_in_memory, home_of, megabytes
from vae_lab.data.files import DataError
from vae_lab.data.pixels import check_image, read_image
from vae_lab.data.tree import pools

log = logging.getLogger(__name__)

MOST_NAMED = 5
"""Damaged files that a message names; it counts the others."""


class Files(Dataset[Item]):
    """Image files as tensors of one shape, read on demand; `read_image` says what becomes of other modes.

    An image is resized to cover the required size, and cropped to it around its centre. Its pixels then become 0 or 1
    as `binarize` says, with a separate random stream per image.
    """

    def __init__(
        self,
        paths: list[tuple[str, int]],
        image_shape: tuple[int, int, int],
        binarize: Binarize = "none",
        seed: int = 0,
        background: Background = "white",
    ) -> None:
        self.paths = paths
        self.image_shape = image_shape
        self.background: Background = background
        self.binarize: Binarize = binarize
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path, label = self.paths[index]
        channels, height, width = self.image_shape
        image = read_image(path, channels, self.background)
        scale = max(height / image.height, width / image.width)
        covering = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        if covering != [image.height, image.width]:
            image = resize(image, covering, InterpolationMode.BILINEAR, antialias=True)
        top, left = (image.height - height) // 2, (image.width - width) // 2
        pixels = pil_to_tensor(image.crop((left, top, left + width, top + height)))
        return fixed(pixels, self.binarize, derived_seed(self.seed, "binary", index)), label


class FolderData(ImageModule):
    """The images in a folder: in one folder per class, as for `torchvision.datasets.ImageFolder`, or in none.

    The splits do not overlap and are drawn by `subset_seed`: first the test images, then the validation images, then
    the training images, so that more training images change neither of the others. If the folders are `train`, `val`
    and `test`, each split is drawn from its own; see `tree.pools`. Images are kept in memory, on a GPU
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
        background: what transparent images are laid over.
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
        background: Background = "white",
    ) -> None:
        super().__init__(batch_size, seed, binarize, binarize_seed)
        self.background: Background = background
        self.root = Path(root)
        self.dataset = dataset
        self.image_shape = (image_shape[0], image_shape[1], image_shape[2])
        self.counts = {"test": num_test, "val": num_val, "train": num_train}
        self.subset_seed = subset_seed
        self.workers = workers
        self.in_memory = in_memory
        self.classes: list[str] | None = None
        self.files: dict[str, Files] = {}
        self.left_out: list[str] = []
        self.splits: dict[str, Split] = {}
        self._is_set_up = False

    def prepare_data(self) -> None:
        """Find the files, and check that each can be read; files that were checked before are not checked again.

        Raises:
            DataError: if there is no such folder, there are too few images in it, or some cannot be read.
        """
        files = self._find()
        state = f"{PIL.__version__} {self.background}\n" + "\n".join(map(repr, files))
        checked = cache_folder() / "checked" / hashlib.sha256(state.encode(errors="surrogateescape")).hexdigest()
        if checked.exists():
            return
        self._check([file.path for file in files])
        with suppress(OSError):  # without a cache the next command checks them again
            checked.parent.mkdir(parents=True, exist_ok=True)
            checked.touch()

    def _check(self, paths: list[str]) -> None:
        def problem(path: str) -> str | None:
            try:
                check_image(path, self.background)
            except DataError as error:
                return str(error)
            return None

        with ThreadPoolExecutor() as pool:
            found = [one for one in watched(pool.map(problem, paths), len(paths), "Checking image files") if one]
        if found:
            more = f"; and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
            raise DataError("; ".join(found[:MOST_NAMED]) + more)

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
        left_out = f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        log.info("images: %s of %s, %s%s", f"{sum(self.counts.values()):,}", megabytes(size), storage, left_out)
        if self.in_memory:
            self.splits = {name: _read(files, self.workers) for name, files in self.files.items()}

    def _find(self) -> list[ImageFile]:
        """The files of all splits, which it draws."""
        if not self.root.is_dir():
            raise DataError(f"there is no folder {self.root}; data.root must name a folder of images")
        try:
            tree = image_files(self.root)
        except OSError as error:
            raise DataError(str(error)) from error
        self.left_out = [
            f"{len(paths):,} {kind}, such as {min(paths)}"
            for paths, kind in ((tree.repeated, "links to images that count already"), (tree.others, "other files"))
            if paths
        ]
        pool_of, self.classes = pools(self.root, tree.images)
        taken = []
        for pool in {id(one): one for one in pool_of.values()}.values():
            splits = [split for split in pool_of if pool_of[split] is pool]
            self._check_count(splits, pool)
            order = order_of(len(pool), self.subset_seed, 0).tolist()
            for split in reversed(splits):
                drawn, order = order[: self.counts[split]], order[self.counts[split] :]
                chosen = [pool[index] for index in drawn]
                taken += [file for file, _ in chosen]
                mode: Binarize = "none" if split == "train" and self.binarize == "dynamic" else self.binarize
                self.files[split] = self._read_on_demand(split, [(file.path, label) for file, label in chosen], mode)
        return taken

    def _check_count(self, splits: list[str], pool: Sequence[object]) -> None:
        wanted = sum(self.counts[split] for split in splits)
        if len(pool) >= wanted:
            return
        tenth = len(pool) // 10
        parts = dict.fromkeys(splits, tenth) | {splits[0]: len(pool) - tenth * (len(splits) - 1)}
        remedy = (
            f"try {' '.join(f'data.num_{split}={count}' for split, count in parts.items())}"
            if tenth
            else f"their names must end in {', '.join(IMAGE_ENDINGS)}"
        )
        keys = " + ".join(f"num_{split}" for split in splits)
        counts = " + ".join(f"{self.counts[split]:,}" for split in splits) + (
            f" = {wanted:,}" if len(splits) > 1 else ""
        )
        part = "" if len(splits) == len(self.counts) else f" for {splits[0]}"
        raise DataError(f"{self.root} has {len(pool):,} images{part}, but {keys} is {counts}; {remedy}")

    def _read_on_demand(self, split: str, paths: list[tuple[str, int]], mode: Binarize) -> Files:
        return Files(paths, self.image_shape, mode, derived_seed(self.binarize_seed, split), self.background)

    def loader(self, split: str, seed: int | None, *, labelled: bool) -> Batches | Streamed:
        """Batches of a split; with a seed their order differs in every epoch."""
        labelled = labelled and self.classes is not None
        size, part, draws = self.size_of_batch(seed), self.part(seed), self.draws_binary(seed)
        files = self.files[split]
        drawn_once = split == "train" and self.binarize == "dynamic" and not draws
        if drawn_once:  # the images in memory still have grey levels
            files = self._read_on_demand(split, files.paths, "static")
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
        images[start : start + len(batch[0])] = torch.as_tensor(batch[0])
        start += len(batch[0])
    labels: Any = [label for _, label in files.paths]
    return Split(images, torch.tensor(labels, dtype=torch.int64))
