"""Make the images that ship with the package from the official Fashion-MNIST files.

    python scripts/make_subset.py FOLDER

FOLDER holds the four official files, plain or compressed by gzip. The first 4,000 training and the first 1,000 test
images and labels go, in the set's own format and under its own names, to vae_lab/assets/fashion_mnist_3k, byte for byte
the same each time.
"""

import argparse
import gzip
import hashlib
import struct
import sys
from pathlib import Path

OFFICIAL = {  # file: how many to keep, how its SHA-256 begins, decompressed
    "train-images-idx3-ubyte": (4000, "c59f468a2f672dc8"),
    "train-labels-idx1-ubyte": (4000, "bad3541b69d91243"),
    "t10k-images-idx3-ubyte": (1000, "5b4141f0afbad91e"),
    "t10k-labels-idx1-ubyte": (1000, "0402a96d92fd2663"),
}
TARGET = Path(__file__).resolve().parents[1] / "vae_lab" / "assets" / "fashion_mnist_3k"
RAW = "FashionMNIST/raw"  # where torchvision looks


def read(folder: Path, name: str) -> bytes:
    """An official file, decompressed."""
    plain, compressed = folder / name, folder / f"{name}.gz"
    if compressed.exists():
        return gzip.decompress(compressed.read_bytes())
    if plain.exists():
        return plain.read_bytes()
    raise SystemExit(f"{folder} has neither {name} nor {name}.gz; name the folder of the official files")


def first(content: bytes, count: int) -> bytes:
    """An IDX file with the first `count` items of another."""
    dimensions = content[3]
    header = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    item = 1
    for side in header[1:]:
        item *= side
    start = 4 + 4 * dimensions
    return content[:4] + struct.pack(f">{dimensions}I", count, *header[1:]) + content[start : start + count * item]


def make(source: Path, target: Path) -> None:
    """Write the subset and its checksums."""
    (target / RAW).mkdir(parents=True, exist_ok=True)
    sums = []
    for name, (count, expected) in OFFICIAL.items():
        content = read(source, name)
        found = hashlib.sha256(content).hexdigest()
        if not found.startswith(expected):
            raise SystemExit(f"{source / name}: not the official file, its SHA-256 begins {found[:16]}, not {expected}")
        subset = first(content, count)
        (target / RAW / name).write_bytes(subset)
        sums.append(f"{hashlib.sha256(subset).hexdigest()}  {RAW}/{name}\n")
    (target / "SHA256SUMS").write_text("".join(sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="folder of the official files")
    parser.add_argument("--target", type=Path, default=TARGET, help="where the subset goes (default: the package)")
    arguments = parser.parse_args()
    make(arguments.source, arguments.target)
    print(f"wrote {arguments.target}", file=sys.stderr)


if __name__ == "__main__":
    main()
