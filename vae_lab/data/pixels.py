"""Image files of any mode, as viewers show them, in 8 bits of grey or colour."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vae_lab.config.base import Background
from vae_lab.data.files import DataError

MODES = {1: "L", 3: "RGB"}

WHITE_IS_ZERO, BITS = 262, 258
"""Tags of a TIFF file: how light is coded (0: white is zero), and the bits of a value."""


def read_image(path: str, channels: int, background: Background) -> Image.Image:
    """The image of a file as 8-bit grey (1 channel) or colour (3).

    Values of 16 bits are scaled so that 65535 becomes 255, floats so that 1 does. The orientation in a photo's EXIF
    data is applied. What is transparent shows the background. Of an animation, the first frame counts.

    Raises:
        DataError: if the file cannot be read, or its values have no certain meaning.
    """
    with _named(path), Image.open(path) as file:
        pages = file.n_frames if isinstance(file, Image.Image) and file.format == "TIFF" else 1  # type: ignore[attr-defined]
        if pages > 1:
            raise ValueError(f"it has {pages} pages, and an image is one: save each as a file of its own")
        file.load()
        ImageOps.exif_transpose(file, in_place=True)
        image = _in_8_bits(file)
        if image.has_transparency_data:
            shown = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", shown.size, background), shown)
        return image.convert(MODES[channels])


def check_image(path: str, background: Background) -> None:
    """Check that `read_image` can read a file, without decoding it where its header and end, or its checksums, will do.

    Raises:
        DataError: as `read_image`.
    """
    with suppress(Exception), Image.open(path) as file:  # whatever is wrong, reading the whole file says it better
        if not file.mode.startswith(("I", "F")):
            if file.format == "PNG":
                file.verify()  # the checksum of every chunk
                return
            if file.format in ("JPEG", "MPO") and _tail(path).endswith(b"\xff\xd9"):
                return
    read_image(path, 3, background)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Report any exception with the file's path; a damaged file can make Pillow raise many kinds."""
    try:
        yield
    except Exception as error:
        problem = "the file is empty" if not Path(path).exists() or not Path(path).stat().st_size else str(error)
        raise DataError(f"{path}: the image cannot be read ({problem}); replace it or take it away") from error


def _tail(path: str) -> bytes:
    """The end of a file, without the zeros and line ends that some programs append."""
    with open(path, "rb") as file:
        file.seek(max(0, Path(path).stat().st_size - 1024))
        return file.read().rstrip(b"\0\r\n")


def _in_8_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        return _from_floats(np.asarray(image))
    if not image.mode.startswith("I"):
        return image.convert("RGB") if image.mode == "LAB" else image
    values, tags = np.asarray(image).astype(np.int64), getattr(image, "tag_v2", {})
    low, high = int(values.min()), int(values.max())
    white = 4095 if tags.get(BITS) == (12,) else 65535
    if image.mode == "I" and (low < 0 or high > white or 0 < high <= 255):
        raise ValueError(
            f"its 32-bit integers go from {low} to {high}, which may mean anything: save it in 8 or 16 bits"
        )
    if tags.get(WHITE_IS_ZERO) == 0:
        values = white - values
    grey = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    if "transparency" in image.info:  # one level of a PNG
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _from_floats(values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]") -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN included
        raise ValueError(f"its floats go from {low:g} to {high:g}, but must lie in [0, 1]: save it with such values")
    return Image.fromarray(np.round(values * 255).astype(np.uint8))
