"""The fingerprint of a run, with that of images which only a data module tells."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from pydantic import BaseModel

from vae_lab import config
from vae_lab.config import Config
from vae_lab.config import fingerprint as files
from vae_lab.config.fingerprint import IMAGES, Data, is_told_by_files, of_code
from vae_lab.data.batches import images_of


def complete(settings: Config) -> dict[str, str]:
    """The fingerprint of a run: its images and the user's own code in it."""
    return of_images(settings.data) | of_code(settings)


def of_images(data: Data) -> dict[str, str]:
    """The fingerprint of a data section's images: of known files, else of the first batch of each split.

    A split whose first batch differs between two attempts under one seed is left out. The batches are read once for all
    runs of a command; see `forget`.
    """
    if is_told_by_files(data):
        return files.of_images(data)
    return dict(_of_first_batches(type(data), data.model_dump_json()))


def forget() -> None:
    """Let the next fingerprint read its batches again."""
    _of_first_batches.cache_clear()


@lru_cache(maxsize=16)
def _of_first_batches(schema: type[BaseModel], section: str) -> tuple[tuple[str, str], ...]:
    node = schema.model_validate_json(section)
    with isolate_rng():
        first, second = dict(_attempt(node)), dict(_attempt(node))
    return tuple((key, value) for key, value in first.items() if second.get(key) == value)


def _attempt(node: BaseModel) -> Iterator[tuple[str, str]]:
    with suppress(Exception):  # a user's data module may raise anything; the run itself reports it
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  # the one that a user's code may draw from
        torch.manual_seed(0)
        data = config.build(node)
        data.seed = 0
        data.prepare_data()
        data.setup("fit")
        for split in ("train", "val", "test"):
            with suppress(Exception):  # it may have no such split
                if split == "test":
                    data.setup("test")
                images = images_of(next(iter(getattr(data, f"{split}_dataloader")())))
                content = images.detach().cpu().contiguous()
                digest = hashlib.sha256(content.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
                yield f"{IMAGES} of {split}", f"{'×'.join(map(str, images.shape))}, {digest[:16]}"
