"""Image files of every mode: read as viewers show them, or refused with the file's name."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_lab.data import DataError
from vae_lab.data.pixels import check_image, read_image

RAMP = np.tile(np.linspace(0, 1, 16), (16, 1))
BYTES = np.round(RAMP * 255).astype(np.uint8)
SIXTEEN = np.round(RAMP * 65535).astype(np.uint16)
RIGHT_HALF = np.where(RAMP < 0.5, 0, 255).astype(np.uint8)
GREY = Image.fromarray(BYTES)
COLOUR = GREY.convert("RGB")


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _with(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


SHOWN: dict[str, Callable[[Path], object]] = {
    "grey.png": GREY.save,
    "UPPER.PNG": GREY.save,
    "colour.bmp": COLOUR.save,
    "cmyk.tif": COLOUR.convert("CMYK").save,
    "ycbcr.jpg": lambda path: COLOUR.save(path, quality=100),
    "palette.png": GREY.convert("P").save,
    "lab.tif": COLOUR.convert("LAB").save,
    "first_frame.gif": lambda path: GREY.save(path, save_all=True, append_images=[Image.new("L", (16, 16))]),
    "grey16.png": Image.fromarray(SIXTEEN).save,
    "little_endian.tif": Image.fromarray(SIXTEEN).save,
    "big_endian.tif": Image.fromarray(SIXTEEN.astype(">u2")).save,
    "grey16.pgm": lambda path: path.write_bytes(b"P5 16 16 65535\n" + SIXTEEN.astype(">u2").tobytes()),
    "integers.tif": Image.fromarray(SIXTEEN.astype(np.int32)).save,
    "white_is_zero.tif": lambda path: Image.fromarray(65535 - SIXTEEN).save(path, tiffinfo={262: 0}),
    "floats.tif": Image.fromarray(RAMP.astype(np.float32)).save,
    "opaque.png": _with(COLOUR, Image.new("L", (16, 16), 255)).save,
    "turned.jpg": lambda path: GREY.transpose(Image.Transpose.ROTATE_90).save(path, exif=_exif(6), quality=100),
    "mirrored.png": lambda path: GREY.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, exif=_exif(2)),
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_any_mode_is_read_as_viewers_show_it(tmp_path: Path, name: str, channels: int) -> None:
    SHOWN[name](tmp_path / name)
    check_image(str(tmp_path / name), "white")
    image = read_image(str(tmp_path / name), channels, "white")
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    found = np.asarray(image.convert("L")).astype(int)
    assert abs(found - BYTES).max() <= 3


BLACK = np.zeros((16, 16), np.uint8)
GLYPHS: dict[str, Callable[[Path], object]] = {
    "la.png": _with(Image.fromarray(BLACK), Image.fromarray(RIGHT_HALF)).save,
    "rgba.webp": lambda path: _with(Image.fromarray(BLACK), Image.fromarray(RIGHT_HALF)).save(path, lossless=True),
    "palette.gif": lambda path: Image.fromarray(1 - RIGHT_HALF // 255).convert("P").save(path, transparency=1),
    "one_level.png": lambda path: Image.fromarray(255 - RIGHT_HALF).save(path, transparency=255),
    "one_level_of_16_bits.png": lambda path: Image.fromarray((255 - RIGHT_HALF).astype(np.uint16) * 257).save(
        path, transparency=65535
    ),
}


@pytest.mark.parametrize("name", GLYPHS)
def test_what_is_transparent_shows_the_background(tmp_path: Path, name: str) -> None:
    """Each is transparent on the left and black on the right."""
    GLYPHS[name](tmp_path / name)
    white, black = (np.asarray(read_image(str(tmp_path / name), 1, one)) for one in ("white", "black"))
    assert (white == 255 - RIGHT_HALF).all()
    assert (black == 0).all()


def _pages(path: Path) -> None:
    GREY.save(path, save_all=True, append_images=[GREY])


def _cut(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def _flipped(path: Path) -> None:
    _cut(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("bytes_as_floats.tif", Image.fromarray(RAMP.astype(np.float32) * 255).save, "floats go from 0 to 255"),
    ("nan.tif", Image.fromarray(np.full((4, 4), np.nan, np.float32)).save, "must lie in [0, 1]"),
    ("negative.tif", Image.fromarray(SIXTEEN.astype(np.int32) - 9).save, "32-bit integers go from -9"),
    ("of_8_bits.tif", Image.fromarray(BYTES.astype(np.int32)).save, "go from 0 to 255, which may mean anything"),
    ("pages.tif", _pages, "it has 2 pages"),
    ("empty.png", Path.touch, "the file is empty"),
    ("text.png", lambda path: path.write_text("not an image"), "cannot identify image file"),
    ("cut.png", _cut, "truncated"),
    ("cut.jpg", _cut, "truncated"),
    ("cut.bmp", _cut, "truncated"),
    ("flipped.png", _flipped, "cannot be read"),
]


@pytest.mark.parametrize(("name", "make", "words"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_others_are_refused_by_name_as_the_check_says(
    tmp_path: Path, name: str, make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / name
    make(path)
    messages = []
    for read in (lambda: read_image(str(path), 3, "white"), lambda: check_image(str(path), "white")):
        with pytest.raises(DataError) as raised:
            read()
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{path}: the image cannot be read (")
    assert words in messages[0]
    assert os.linesep not in messages[0]
