"""The image files under a folder, each once. Imports only the standard library."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".webp",
    ".gif", ".avif", ".jp2", ".tga",
)  # fmt: skip
"""The endings of image files."""

IGNORED = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders of operating systems, which are ignored like hidden ones."""


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
        OSError: if a folder cannot be read, or something with the name of an image is no file; with the path.
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
                raise OSError(f"{folder}: the folder cannot be read ({error.strerror}); make it readable") from error
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
                    raise OSError(f"{path}: the image cannot be read ({error.strerror}); take it away") from error
                continue
            if not is_image and not stat.S_ISDIR(status.st_mode):
                tree.others.append(path)
                continue
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path}: the image cannot be read (it is no file); take it away")
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
