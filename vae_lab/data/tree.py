"""The classes and splits that the folders of image files make."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vae_lab.config.images import ImageFile
from vae_lab.data.files import DataError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


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
