"""The files of a data set: find them, check them, and decompress them into the cache."""

import gzip
import hashlib
import os
import shutil
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock

from vae_lab.config.fingerprint import cache_folder

CHECKSUMS = "SHA256SUMS"
PACKAGES = {"FashionMNIST": "Debian's package dataset-fashion-mnist has them, in /usr/share/datasets/fashion-mnist"}
"""Class of torchvision → a package with its official files."""


class DataError(ValueError):
    """Files are missing, damaged or differ from the configuration; the message has the path and a remedy."""


def exclusive(folder: Path) -> FileLock:
    """A lock on a folder, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def find_files(root: Path, name: str) -> Path:
    """A folder from which torchvision's class `name` reads the IDX files under `root`.

    Files where torchvision expects them (`root/<name>/raw`) are used in place. Other files, and files compressed by
    gzip, are copied once into the cache.

    Raises:
        DataError: if there are none, or a checksum differs.
    """
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root}; data.root must name one that holds the files of {name}{_source(name)}"
        )
    folders = [root / name / "raw", root]
    for folder in folders:
        # In this order a plain file replaces its compressed copy.
        found = {path.name.removesuffix(".gz"): path for path in sorted(folder.glob("*-ubyte*"), reverse=True)}
        wanted = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        if not found:
            continue
        missing = [file for file in wanted if file not in found]
        if missing:
            raise DataError(f"{folder / missing[0]}: the file is missing; {_remedy(root)}{_source(name)}")
        check_sums(folder.parents[1] if folder != root else folder, root)
        if folder == folders[0] and all(path.suffix != ".gz" for path in found.values()):
            return root
        return _into_cache(root, name, [found[file] for file in wanted])
    raise DataError(
        f"{root} holds no files of {name}, such as train-images-idx3-ubyte.gz; data.root must name their folder"
        f"{_source(name)}"
    )


def _source(name: str) -> str:
    return f" ({PACKAGES[name]})" if name in PACKAGES else ""


def _into_cache(root: Path, name: str, files: list[Path]) -> Path:
    stamp = "".join(f"{path.resolve()}{path.stat().st_size}{path.stat().st_mtime_ns}" for path in files)
    target = cache_folder() / hashlib.sha256(stamp.encode()).hexdigest()[:16]
    with exclusive(target):
        raw = target / name / "raw"
        if raw.is_dir():
            try:
                check_sums(raw, raw)
                return target
            except DataError:  # the source is available: copy it again
                shutil.rmtree(raw)
        with tempfile.TemporaryDirectory(dir=target) as temporary:
            for path in files:
                opener = gzip.open if path.suffix == ".gz" else open
                try:
                    with opener(path, "rb") as source, open(Path(temporary) / path.stem, "wb") as copy:
                        shutil.copyfileobj(source, copy)
                except (OSError, EOFError, zlib.error) as error:
                    raise DataError(f"{path}: the file is damaged ({error}); {_remedy(root)}") from error
            write_sums(Path(temporary))
            raw.parent.mkdir(exist_ok=True)
            shutil.copytree(temporary, raw.with_name("raw.partial"), dirs_exist_ok=True)
            os.replace(raw.with_name("raw.partial"), raw)
    return target


def check_sums(folder: Path, root: Path) -> None:
    """Check the files listed in `folder`'s SHA256SUMS, if it has one, against their checksums.

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


def write_sums(folder: Path) -> None:
    """Write the SHA256SUMS of a folder's IDX files, so that later damage to a copy is noticed."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.glob("*-ubyte"))
    ]
    temporary = folder / f".{CHECKSUMS}.partial"
    temporary.write_text("".join(lines))
    os.replace(temporary, folder / CHECKSUMS)


def check_idx(path: Path) -> None:
    """Check an IDX file's length against its header.

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
    if Path(__file__).parents[1] in path.parents:
        return "put it back: git checkout the file, or install vae_lab again from where you have it"
    if cache_folder() in path.parents:
        return "delete it, and it will be made again"
    return "replace it, or leave out data.root and it will be downloaded"
