"""Draw sheets of a model's images as PNG files, from a run folder."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vae_lab import results
from vae_lab.data.batches import images_of
from vae_lab.evaluation import measure
from vae_lab.evaluation.latent_space import labelled_training_images
from vae_lab.evaluation.runs import open_images
from vae_lab.model import samplers, vae
from vae_lab.model.quantized import QuantizedPosterior, as_map
from vae_lab.trained import foreign
from vae_lab.trained.evaluate import with_trusted_images
from vae_lab.trained.loading import load, read_settings
from vae_lab.trained.trust import Allowed

T = TypeVar("T")

MARGIN = 2
"""Pixels between images, at scale 1."""
USUAL_HEIGHT, USUAL_SIDE = 96, 2000
"""The most pixels of an image, and of a sheet, if no scale is given."""
LARGEST = 100_000_000
"""The most pixels of a sheet: 300 MB in memory."""
MOST_CODES = 2000
"""The most test images that are encoded to find the directions in which the codes vary."""
SOURCES = {"gaussian": "a Gaussian fitted to the training codes", "mixture": "a mixture fitted to the training codes"}
AT_ONCE = 250
"""Images that are decoded per update of the progress bar."""


class SheetError(ValueError):
    """A sheet that cannot be drawn as requested."""


@dataclass(frozen=True)
class Wanted:
    """The contents of a sheet; None uses the default of the kind, see `vae-lab generate --help`.

    Args:
        what: a kind, one of `KINDS`.
        rows: rows of images; for reconstructions, pairs of rows: the images and their reconstructions.
        columns: images in a row.
        count: number of samples or reconstructions, instead of `rows`.
        sampler: what samples are drawn from: `prior`, or the kind of a sampler that is fitted to the training codes.
        seed: seed of the samples; for other kinds, of the choice of test images. None takes the first test images.
        index: the test images, counted from 0.
        dims: the latent dimensions, counted from 0.
        span: the largest distance from the middle, in standard deviations of the prior, or of the codes along a
            principal component.
        scale: pixels of the sheet per pixel of an image, in both directions.
    """

    what: str = "samples"
    rows: int | None = None
    columns: int | None = None
    count: int | None = None
    seed: int | None = None
    sampler: str = "prior"
    index: Sequence[int] = ()
    dims: Sequence[int] = ()
    span: float = 3.0
    scale: int | None = None


class Drawn(NamedTuple):
    """Images of a sheet, and their layout."""

    images: Float[Tensor, "n c h w"]
    columns: int
    note: str
    """A description to print."""
    together: int | None = 1
    """Number of rows in a group; groups have a wider margin between them. None for no margins at all."""


def generate(
    run: Path,
    wanted: Wanted,
    out: Path,
    best: str | None = None,
    allow: Allowed | Iterable[Allowed] = (),
    device: str = "cpu",
    root: str | None = None,
) -> str:
    """Draw a sheet of a finished run's model to a PNG file; returns a sentence that describes it.

    The folder may be untrusted, as in `load` and `evaluate`.

    Args:
        run: a run's folder; with `best`, that of a sweep or a cell.
        wanted: the contents of the sheet.
        out: the file; its name ends in `.png`.
        best: see `load`.
        allow: see `load`.
        device: the device that computes.
        root: the folder of the data set's files, instead of the configuration's `data.root`.

    Raises:
        SheetError: if the model cannot give these contents, or the file must not be written.
        LoadError: if there is no model, see `load`.
        DataError: if the test images cannot be read.
        OSError: if the file cannot be written.
    """
    _check_numbers(wanted)
    if out.suffix.lower() != ".png":
        raise SheetError(f"--out: must end in .png, the one format that is written, but is {str(out)!r}")
    if out.is_dir():
        raise SheetError(f"--out: must be a file, but {out} is a folder")
    folder, result = foreign.choose(run, best)
    if out.name in result.files and out.parent.resolve() == folder.resolve():
        raise SheetError(f"--out: {out} is a file that the run itself left; choose another name or folder")
    model = load(folder, allow, device)
    drawn = draw(model, wanted, TestImages(folder, root, model))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_sheet(out, sheet(drawn, wanted.scale))
    return f"{drawn.note}, of {folder}"


def _check_numbers(wanted: Wanted) -> None:
    for name, least in (("rows", 1), ("columns", 1), ("count", 1), ("scale", 1)):
        value = getattr(wanted, name)
        if value is not None and value < least:
            raise SheetError(f"--{name}: must be at least {least}, but is {value}")
    if not 0 < wanted.span < math.inf:
        raise SheetError(f"--span: must be a finite number greater than 0, but is {wanted.span:g}")
    if wanted.count is not None and wanted.rows is not None:
        raise SheetError("--count: gives the number of rows; leave out --rows")


# --- Test images -------------------------------------------------------------------------------------------


class TestImages:
    """The test images of a run, read on first use, and its training images for samplers."""

    def __init__(self, folder: Path, root: str | None, model: vae.VAE) -> None:
        self.folder = folder
        self.root = root
        self.model = model
        self._batches: Iterable[object] | None = None

    def batches(self) -> Iterator[Float[Tensor, "b c h w"]]:
        """All test images in batches, on the CPU, in the order of the files.

        Raises:
            LoadError: if untrusted code would read them.
            DataError: if they cannot be read.
        """
        if self._batches is None:
            settings = with_trusted_images(self.folder, read_settings(self.folder), self.root)
            self._batches = open_images(self.folder, settings, "test").test_dataloader()
        for batch in self._batches:
            yield images_of(batch)

    def take(self, count: int, wanted: Wanted) -> tuple[Float[Tensor, "n c h w"], list[int]]:
        """The first or a random choice of `count` images, or those of `wanted.index`; and their numbers.

        Raises:
            SheetError: if there are too few images, or a number does not exist.
        """
        if wanted.seed is None or wanted.index:
            numbers = list(wanted.index) or list(range(count))
            found, seen = self._find(numbers)
        else:
            total = sum(len(batch) for batch in self.batches())
            order = torch.randperm(total, generator=torch.Generator().manual_seed(wanted.seed))
            numbers = order[:count].tolist()
            found, seen = self._find(numbers)
        missing = [number for number in numbers if number not in found]
        if wanted.index and missing:
            raise SheetError(
                f"--index: must be among the {seen:,} test images of the run, 0 to {seen - 1}, but {missing[0]} is not"
            )
        if missing or len(numbers) < count:
            raise SheetError(f"the run has {seen:,} test images, but {count:,} are wanted")
        return torch.stack([found[number] for number in numbers]), numbers

    def fitted(self, kind: str) -> samplers.Sampler:
        """A sampler that is fitted to the codes of as many training images as for `metrics.samplers`.

        Raises:
            SheetError: if the model's codes have no such density, or there are too few images.
            LoadError: if untrusted code would read the images.
            DataError: if they cannot be read.
        """
        if isinstance(self.model.posterior, QuantizedPosterior):
            raise SheetError("--sampler: a density that is fitted to codes of a codebook gives no codes; take prior")
        if self.model.latent_dim > samplers.MOST_FITTED:
            raise SheetError(
                f"--sampler: takes at most {samplers.MOST_FITTED:,} latent dimensions, but the model has "
                f"{self.model.latent_dim:,}; take prior"
            )
        settings = with_trusted_images(self.folder, read_settings(self.folder), self.root)
        images, count = [], 0
        for batch in labelled_training_images(open_images(self.folder, settings, "fit")):
            images.append(images_of(batch)[: measure.MOST_CODES - count])
            count += len(images[-1])
            if count == measure.MOST_CODES:
                break
        try:
            return samplers.fit(self.model, torch.cat(images), cast("samplers.Kind", kind))
        except ValueError as error:
            raise SheetError(f"--sampler: {error}") from error

    def _find(self, numbers: Sequence[int]) -> tuple[dict[int, Tensor], int]:
        """The images with these numbers that exist, and how many images were read until all were found."""
        found: dict[int, Tensor] = {}
        seen = 0
        for batch in self.batches():
            found |= {number: batch[number - seen] for number in numbers if 0 <= number - seen < len(batch)}
            seen += len(batch)
            if len(found) == len({*numbers}):
                break
        return found, seen

    def codes(self) -> Float[Tensor, "n z"]:
        """Posterior means of the first `MOST_CODES` test images, flattened, on the CPU."""
        means, seen = [], 0
        for batch in _tracked(self.batches(), "encoding the test images"):
            means.append(self.model.encode(batch[: MOST_CODES - seen]).mean.flatten(1).cpu())
            seen += len(means[-1])
            if seen == MOST_CODES:
                break
        if not seen:
            raise SheetError("the run has no test images")
        return torch.cat(means)


def _tracked(sequence: Iterable[T], text: str, total: int | None = None) -> Iterable[T]:
    errors = Console(stderr=True)
    return track(sequence, text, total, console=errors, transient=True, disable=not errors.is_terminal)


# --- Kinds of sheets ---------------------------------------------------------------------------------------


def draw(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """Compute the images of a sheet.

    Raises:
        SheetError: if the model or the test images cannot give these contents.
    """
    if wanted.what not in KINDS:
        raise SheetError(f"--what: there is no {wanted.what!r}; known: {', '.join(KINDS)}")
    unknown = [dim for dim in wanted.dims if dim not in range(model.latent_dim)]
    if unknown:
        raise SheetError(
            f"--dims: must be among the latent dimensions 0 to {model.latent_dim - 1}, but {unknown[0]} is not"
        )
    return KINDS[wanted.what](model, wanted, test)


def samples(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """Decoded samples of the prior, or of a sampler that is fitted to the training codes."""
    columns = wanted.columns or 8
    count = wanted.count or columns * (wanted.rows or 8)
    seed = wanted.seed or 0
    _check_size(model, count, columns, wanted.scale)
    generator = torch.Generator().manual_seed(seed)
    if wanted.sampler == "prior":
        z, source = model.draw(count, generator), "the prior"
    else:
        z, source = test.fitted(wanted.sampler).draw(count, generator), SOURCES[wanted.sampler]
    images = _decoded(model, z.reshape(-1, *model.latent_shape))
    return Drawn(images, columns, f"{_counted(count, 'sample')} of {source}, seed {seed}")


def reconstructions(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """Test images above their reconstructions."""
    columns = wanted.columns or min(10, len(wanted.index) or wanted.count or 10)
    count = len(wanted.index) or wanted.count or columns * (wanted.rows or 1)
    _check_size(model, 2 * count, columns, wanted.scale)
    images, numbers = test.take(count, wanted)
    return Drawn(_above(model, images, columns), columns, f"{_named(numbers)} above what the model makes of them", 2)


def interpolation(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """A row for each pair of successive test images: the straight line between their posterior means."""
    if len(wanted.index) == 1:
        raise SheetError(
            f"--index: an interpolation goes from one test image to the next, but {wanted.index[0]} is one"
        )
    steps = wanted.columns or 10
    if steps < 2:
        raise SheetError("--columns: must be at least 2, the two ends of an interpolation, but is 1")
    rows = len(wanted.index) - 1 if wanted.index else wanted.rows or 6
    _check_size(model, rows * steps, steps, wanted.scale)
    images, numbers = test.take(rows + 1, wanted)
    pairs = _tracked(itertools.pairwise(images), "interpolating", rows)
    lines = [model.interpolate(a, b, steps).cpu() for a, b in pairs]
    return Drawn(torch.cat(lines), steps, f"interpolations, a row from each to the next of {_named(numbers)}")


def traversal(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """A row for each of some latent dimensions, from −span to span; the others keep a test image's values."""
    if len(wanted.index) > 1:
        raise SheetError(f"--index: a traversal starts from one test image, but {len(wanted.index)} are named")
    steps = wanted.columns or 9
    if steps < 2:
        raise SheetError("--columns: must be at least 2, the two ends of a traversal, but is 1")
    if wanted.rows and wanted.rows > model.latent_dim:
        raise SheetError(f"--rows: must be at most {model.latent_dim}, the latent dimensions, but is {wanted.rows}")
    rows = len(wanted.dims) or min(wanted.rows or 8, model.latent_dim)
    _check_size(model, rows * steps, steps, wanted.scale)
    images, numbers = test.take(1, wanted)
    dims = list(wanted.dims) or most_active(test.codes())[:rows]
    walks = [model.traverse(images[0], [dim], wanted.span, steps)[0].cpu() for dim in _tracked(dims, "traversing")]
    which = "" if wanted.dims else ", in which the codes vary most"
    note = f"traversals of latent dimensions {_listed(dims)}{which}, from −{wanted.span:g} to {wanted.span:g} around "
    return Drawn(torch.cat(walks), steps, note + _named(numbers))


def manifold(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """The decoded images of a plane of codes, side by side.

    With two latent dimensions the plane is the whole space. With `dims` it is the plane of these two dimensions, and
    the others are 0. Otherwise it goes through the mean of the test images' codes along their first two principal
    components.
    """
    if model.latent_dim < 2:
        raise SheetError("--what manifold: takes two latent dimensions or more, but the model has 1; take traversal")
    if wanted.dims and len({*wanted.dims}) != 2:
        raise SheetError(f"--dims: a manifold has two different dimensions, but got {' '.join(map(str, wanted.dims))}")
    rows, columns = (number or 20 for number in (wanted.rows, wanted.columns))
    _check_size(model, rows * columns, columns, wanted.scale)
    if wanted.dims or model.latent_dim == 2:
        dims = list(wanted.dims) or [0, 1]
        middle, axes = torch.zeros(model.latent_dim), torch.eye(model.latent_dim)[dims]
        along = f"latent dimensions {dims[0]} (to the right) and {dims[1]} (up)"
    else:
        middle, axes = principal_axes(test.codes())
        along = "the first two principal components of the test images' codes (to the right and up)"
    right, up = (torch.linspace(-wanted.span, wanted.span, steps) if steps > 1 else torch.zeros(1)
                 for steps in (columns, rows))  # fmt: skip
    plane = torch.cartesian_prod(up.flip(0), right).flip(1)
    note = f"the plane along {along}, from −{wanted.span:g} to {wanted.span:g} standard deviations"
    return Drawn(_decoded(model, (middle + plane @ axes).reshape(-1, *model.latent_shape)), columns, note, None)


def pseudo_inputs(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """The pseudo-inputs of a prior that has them, above the mean images of their codes."""
    with torch.no_grad():
        images = model.prior.images()
    if images is None:
        raise SheetError("--what pseudo_inputs: the model's prior has none; only prior=vamp has")
    count = wanted.count or min(len(images), (wanted.columns or 10) * (wanted.rows or 5))
    if count > len(images):
        raise SheetError(f"--count: must be at most the {len(images)} pseudo-inputs of the prior, but is {count}")
    columns = wanted.columns or min(10, count)
    _check_size(model, 2 * count, columns, wanted.scale)
    return Drawn(
        _above(model, images[:count].cpu(), columns),
        columns,
        f"{_counted(count, 'pseudo-input')} above what the model makes of them",
        2,
    )


def codebook(model: vae.VAE, wanted: Wanted, test: TestImages) -> Drawn:
    """The images of codes of a codebook: each code in all positions."""
    if not isinstance(model.posterior, QuantizedPosterior):
        raise SheetError("--what codebook: the model's posterior has none; only posterior=vq, fsq and lfq have")
    size = len(model.posterior.codebook)
    count = wanted.count or min(size, (wanted.columns or 8) * (wanted.rows or 8))
    if count > size:
        raise SheetError(f"--count: must be at most the {size:,} codes of the model, but is {count:,}")
    columns = wanted.columns or min(8, count)
    _check_size(model, count, columns, wanted.scale)
    codes = torch.linspace(0, size - 1, count).round().long()
    everywhere = codes.reshape(-1, *(1 for _ in model.latent_shape[1:])).expand(-1, *model.latent_shape[1:])
    z = as_map(model.posterior.codebook, everywhere.to(model.posterior.codebook.device), everywhere.dim() - 1)
    which = "all" if count == size else f"{count:,} of {size:,}"
    return Drawn(_decoded(model, z), columns, f"the codes of the codebook ({which}), each in all positions")


KINDS: dict[str, Callable[[vae.VAE, Wanted, TestImages], Drawn]] = {
    "samples": samples,
    "reconstructions": reconstructions,
    "interpolation": interpolation,
    "traversal": traversal,
    "manifold": manifold,
    "pseudo_inputs": pseudo_inputs,
    "codebook": codebook,
}


def most_active(codes: Float[Tensor, "n z"]) -> list[int]:
    """All latent dimensions, in descending order of the variance of the codes."""
    return codes.var(0, correction=0).argsort(descending=True).tolist()


def principal_axes(codes: Float[Tensor, "n z"]) -> tuple[Float[Tensor, " z"], Float[Tensor, "2 z"]]:
    """The mean of the codes, and their first two principal components, each one standard deviation long.

    The largest entry of each component is positive, so that the signs are the same on every machine.
    """
    middle = codes.double().mean(0)
    centred = codes.double() - middle
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(codes))  # in ascending order
    two = directions.T[-2:].flip(0)
    signs = two.gather(1, two.abs().argmax(1, keepdim=True)).sign()
    deviations = variances[-2:].flip(0).clamp(min=0).sqrt()
    return middle.float(), (two * signs * deviations[:, None]).float()


def _decoded(model: vae.VAE, z: Float[Tensor, "n ..."]) -> Float[Tensor, "n c h w"]:
    return torch.cat([model.decode(some).cpu() for some in _in_parts(z, "decoding")])


def _above(model: vae.VAE, images: Float[Tensor, "n c h w"], columns: int) -> Float[Tensor, "m c h w"]:
    """Rows of images, each above the row of their reconstructions."""
    decoded = torch.cat([model.reconstruct(some).cpu() for some in _in_parts(images, "reconstructing")])
    rows = [
        part
        for pair in zip(torch.split(images, columns), torch.split(decoded, columns), strict=True)
        for part in (_filled(one, columns) for one in pair)
    ]
    return torch.cat(rows)


def _in_parts(tensor: Tensor, text: str) -> Iterable[Tensor]:
    return _tracked(torch.split(tensor, AT_ONCE), text)


def _filled(images: Float[Tensor, "n c h w"], count: int) -> Float[Tensor, "m c h w"]:
    """Append white images up to `count` images."""
    return torch.cat([images, images.new_ones(count - len(images), *images.shape[1:])])


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers[:12])) + (" and more" if len(numbers) > 12 else "")


def _named(numbers: Sequence[int]) -> str:
    return f"test image{'s' if len(numbers) > 1 else ''} {_listed(numbers)}"


# --- The sheet ---------------------------------------------------------------------------------------------


def sheet(drawn: Drawn, scale: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Images side by side on white, each pixel a square of one colour."""
    images = drawn.images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    colour = images[:, :3] if images.shape[1] >= 3 else images[:, [0, 0, 0]]  # at most three channels can be shown
    height, width = colour.shape[2:]
    scale = scale or usual_scale(height, width, len(images), drawn.columns)
    tiles = np.kron(colour.permute(0, 2, 3, 1).numpy(), np.ones((scale, scale, 1), dtype=np.uint8))
    margin = 0 if drawn.together is None else MARGIN * -(-scale // 2)
    rows = -(-len(tiles) // drawn.columns)
    tops, top = [], margin
    for row in range(rows):
        if drawn.together and drawn.together > 1 and row and row % drawn.together == 0:
            top += 2 * margin
        tops.append(top)
        top += height * scale + margin
    canvas = np.full((top, margin + drawn.columns * (width * scale + margin), 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, drawn.columns)
        left = margin + column * (width * scale + margin)
        canvas[tops[row] : tops[row] + height * scale, left : left + width * scale] = tile
    return canvas


def usual_scale(height: int, width: int, count: int, columns: int) -> int:
    """The largest scale that keeps an image and the sheet within the usual sizes; at least 1."""
    of_image = USUAL_HEIGHT // height
    of_sheet = min(USUAL_SIDE // (width * columns), USUAL_SIDE // (height * -(-count // columns)))
    return max(1, min(of_image, of_sheet))


def _check_size(model: vae.VAE, count: int, columns: int, scale: int | None) -> None:
    """Check the size of the sheet before anything is computed."""
    height, width = (model.image_shape or (1, 1, 1))[-2:]
    scale = scale or usual_scale(height, width, count, columns)
    size = height * scale * -(-count // columns), width * scale * columns
    if math.prod(size) > LARGEST:
        raise SheetError(
            f"the sheet would have {size[1]:,} × {size[0]:,} pixels, and may have {LARGEST:,}: ask for fewer images or "
            "a smaller --scale"
        )


def write_sheet(path: Path, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """Write a sheet as PNG.

    Raises:
        OSError: if it cannot be written.
    """
    with results.replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", optimize=True)
