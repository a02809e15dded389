"""The image files under a folder, each once, and the classes and splits that their folders make."""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from vae_lab.config.fingerprint import IGNORED, IMAGE_ENDINGS
from vae_lab.data.files import DataError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class ImageFile(NamedTuple):
    """An image file: its path, the folders between the root and it, its size in bytes and its time in nanoseconds."""

    path: str
    folders: tuple[str, ...]
    size: int
    time: int


class Tree(NamedTuple):
    """What was found under a folder."""

    images: list[ImageFile]
    repeated: list[str]
    """Links, and names of the same file, that lead to images counted already."""
    others: list[str]
    """Files that have not the name of an image."""


def image_files(root: Path) -> Tree:
    """The image files under a folder, in its sub-folders and where its links lead; hidden ones are ignored.

    Links are followed last, so that an image counts in its own folder rather than in one that links to it. Every folder
    and every file is taken once.

    Raises:
        DataError: if a folder cannot be read, or something with the name of an image is no file.
    """
    tree = Tree([], [], [])
    seen = {_identity(os.stat(root), str(root))}
    folders: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    links: list[tuple[str, tuple[str, ...]]] = []
    while folders or links:
        if folders:
            folder, parents = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    found = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in IGNORED]
            except OSError as error:
                raise DataError(f"{folder}: the folder cannot be read ({error.strerror}); make it readable") from error
            links += [(entry.path, parents) for entry in found if entry.is_symlink()]
            paths = [(entry.path, parents) for entry in found if not entry.is_symlink()]
        else:
            links.sort()
            paths = [links.pop(0)]
        for path, parents in paths:
            name = os.path.basename(path)
            is_image = name.lower().endswith(IMAGE_ENDINGS)
            try:
                status = os.stat(path)
            except OSError as error:
                if is_image:
                    raise DataError(f"{path}: the image cannot be read ({error.strerror}); take it away") from error
                continue
            if not is_image and not stat.S_ISDIR(status.st_mode):
                tree.others.append(path)
                continue
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: the image cannot be read (it is no file); take it away")
            identity = _identity(status, path)
            if identity in seen:
                tree.repeated.append(path)
                continue
            seen.add(identity)
            if stat.S_ISDIR(status.st_mode):
                folders.append((path, (*parents, name)))
            else:
                tree.images.append(ImageFile(path, parents, status.st_size, status.st_mtime_ns))
    return tree


def _identity(status: os.stat_result, path: str) -> tuple[int, int] | str:
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def pools(root: Path, images: Iterable[ImageFile]) -> tuple[dict[str, list[tuple[ImageFile, int]]], list[str] | None]:
    """The images from which each split is drawn, with their classes, and the names of the classes.

    Images are in one folder per class, or all in `root` without classes. If the folders of `root` are `train`, `val`
    and `test`, each split is drawn from its own; one that has no folder is drawn from `train`.

    Raises:
        DataError: if images lie beside folders of images, or split folders beside others.
    """
    images = sorted(images)
    names = {image.folders[0] if image.folders else "" for image in images}
    splits = {split: name for split, known in SPLIT_FOLDERS.items() for name in names if name.lower() in known}
    are_splits = bool(names) and names == {*splits.values()}
    if "train" in splits and len(splits) > 1 and not are_splits:
        other = min(names - {*splits.values()})
        beside = f"the folder {root / other}" if other else f"{next(one.path for one in images if not one.folders)}"
        raise DataError(
            f"{root} is divided into {_listed(splits.values())}, but has {beside} too: "
            f"move it away, or let data.root name one of these folders"
        )
    if are_splits and "train" not in splits:
        raise DataError(
            f"{root} has {_listed(splits.values())} but no train: add it, or let data.root name one of these folders"
        )
    depth = int(are_splits)
    groups: dict[str, list[ImageFile]] = {}
    for image in images:
        groups.setdefault(image.folders[0] if are_splits else "", []).append(image)
    classes = {image.folders[depth] for image in images if len(image.folders) > depth}
    has_classes = bool(classes)
    for group in groups.values():
        inside = [image for image in group if len(image.folders) > depth]
        beside_them = [image for image in group if len(image.folders) == depth]
        if inside and beside_them:
            raise DataError(
                f"{os.path.dirname(beside_them[0].path)} has images of its own ({len(beside_them):,}, such as "
                f"{beside_them[0].path}) beside folders of images ({len(inside):,}, such as {inside[0].path}): move "
                "one of the two away, or the first into a folder, which makes it a class"
            )
        has_classes = has_classes and bool(inside)
    labels = {name: number for number, name in enumerate(sorted(classes))} if has_classes else {}
    ordered = {
        name: sorted(
            ((image, labels[image.folders[depth]] if labels else 0) for image in group),
            key=lambda one: (one[1], *os.path.split(one[0].path)),
        )
        for name, group in groups.items()
    }
    taken = {
        split: ordered.get(splits.get(split, splits["train"]) if are_splits else "", []) for split in SPLIT_FOLDERS
    }
    return taken, sorted(classes) if has_classes else None


def _listed(names: Iterable[str]) -> str:
    known: Sequence[str] = sorted(names)
    return ", ".join(known[:-1]) + f" and {known[-1]}" if len(known) > 1 else known[0]
