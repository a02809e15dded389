"""Fingerprints of what a configuration only names: the images, and the user's own code.

Two runs are the same if their configurations are and no fingerprint that both have differs. A fingerprint says nothing
about where files are, when they were written, or how code is formatted. One that cannot be taken is left out.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from vae_lab.config.images import image_files
from vae_lab.config.schema import Config, DataConfig, FolderConfig, ForeignData
from vae_lab.config.sources import digest_of
from vae_lab.config.versions import as_first_written, nodes_in

IMAGES, CODE = "images", "code of "
"""How the keys of a fingerprint begin: `images`, or `images of a split`, and `code of a.b.Class`."""

Data = DataConfig | FolderConfig | ForeignData

MOST_READ = 64 * 2**20
"""Bytes of content that a fingerprint reads; of more than that it reads blocks at equal distances."""
MOST_BLOCKS = 4096
BLOCK = 2**16

# The files from which torchvision's class reads images and labels, under its root; other classes have no fixed ones.
_IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
_SETS = {
    "torchvision.datasets.CIFAR10": [
        f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    ],
    "torchvision.datasets.CIFAR100": [f"cifar-100-python/{name}" for name in ("train", "test")],
}
_IDX_SETS = ("torchvision.datasets.MNIST", "torchvision.datasets.FashionMNIST", "torchvision.datasets.KMNIST")


def cache_folder() -> Path:
    """The folder of downloaded and decompressed sets: `$XDG_CACHE_HOME/vae_lab` or `~/.cache/vae_lab`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vae_lab"


def of_code(config: Config) -> dict[str, str]:
    """The fingerprint of the user's own code in a run: `code of a.b.Class` → digest."""
    found = {f"{CODE}{target}": digest_of(target) for target in sorted(_targets(config))}
    return {key: value for key, value in found.items() if value is not None}


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys that both fingerprints have with different values."""
    return [key for key, value in before.items() if now.get(key, value) != value]


def _targets(config: Config) -> set[str]:
    """The names of the classes and functions that a run's result depends on."""
    container = as_first_written(config)
    del container["metrics"]
    targets = {node["_target_"] for node in nodes_in(container)}
    return targets | ({config.data.dataset} if isinstance(config.data, DataConfig) else set())


def is_told_by_files(data: Data) -> bool:
    """Whether the images of a data section are those in known files, so that nothing has to be loaded to tell them."""
    return isinstance(data, FolderConfig) or (isinstance(data, DataConfig) and data.dataset in (*_IDX_SETS, *_SETS))


def of_images(data: Data) -> dict[str, str]:
    """The fingerprint of the images in known files: `images` → files and digest; empty if they are not there."""
    try:
        if isinstance(data, FolderConfig):
            return {IMAGES: of_files(data.root, image_names(Path(data.root)))}
        if isinstance(data, DataConfig) and data.dataset in _IDX_SETS:
            return {IMAGES: _of_idx(data)}
        if isinstance(data, DataConfig) and data.dataset in _SETS:
            return {IMAGES: of_files(data.root or cache_folder(), _SETS[data.dataset])}
    except OSError:  # what is missing is reported where the images are read
        pass
    return {}


def image_names(folder: Path) -> list[str]:
    """The paths of the image files under a folder, relative to it, sorted; see `image_files`."""
    return sorted(Path(os.path.relpath(image.path, folder)).as_posix() for image in image_files(folder).images)


def of_files(folder: str | Path, names: Sequence[str]) -> str:
    """The number of files, and a digest of their names, sizes and content.

    Raises:
        OSError: if one cannot be read.
    """
    versions = []
    for name in names:
        status = os.stat(os.path.join(folder, name))
        versions.append((name, status.st_size, status.st_mtime_ns, status.st_ino))
    return _described(len(names), _digest(str(folder), tuple(versions)))


def _described(files: int, digest: str) -> str:
    return f"{files:,} file{'' if files == 1 else 's'}, {digest[:16]}"


@lru_cache(maxsize=16)
def _digest(folder: str, versions: tuple[tuple[str, int, int, int], ...]) -> str:
    """Cached: the runs of a sweep have the same images. A changed file has another time of change."""
    digest = hashlib.sha256()
    for name, size, *_ in versions:
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
    total = sum(-(-size // BLOCK) for _, size, *_ in versions)
    # Small files have a block each, however little is in it.
    bytes_read = sum(size for _, size, *_ in versions)
    step = max(1, -(-bytes_read // MOST_READ), -(-total // MOST_BLOCKS))
    number = 0
    for name, size, *_ in versions:
        blocks = -(-size // BLOCK)
        taken = range(-number % step, blocks, step)
        number += blocks
        if taken:
            with open(os.path.join(folder, name), "rb") as file:
                for block in taken:
                    file.seek(block * BLOCK)
                    digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _of_idx(data: DataConfig) -> str:
    """Of a set in the IDX format, the same for plain and for compressed files, and wherever they are under the root."""
    name = data.dataset.rpartition(".")[2]
    root = Path(data.root) if data.root else cache_folder()
    folder = next((one for one in (root / name / "raw", root) if any(one.glob("*-ubyte*"))), root)
    digests = []
    for file in _IDX:
        path = folder / file
        path = path if path.exists() else path.with_name(f"{file}.gz")
        status = path.stat()
        digests.append(_content_digest(path, status.st_size, status.st_mtime_ns, status.st_ino))
    return _described(len(_IDX), hashlib.sha256("".join(digests).encode()).hexdigest())


@lru_cache(maxsize=64)
def _content_digest(path: Path, *version: int) -> str:
    """The digest of a file's content, decompressed if it is compressed."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (EOFError, zlib.error) as error:
        raise OSError(f"{path} is damaged ({error})") from error
