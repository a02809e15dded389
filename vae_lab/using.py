"""The commands that use a trained model. torch is imported once their words are known to be good."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from vae_lab import sweep
from vae_lab.config import ConfigError

KINDS = {
    "samples": ("rows", "columns", "count", "seed"),
    "reconstructions": ("rows", "columns", "count", "seed", "index"),
    "interpolation": ("rows", "columns", "seed", "index"),
    "traversal": ("rows", "columns", "seed", "index", "dims", "span"),
    "manifold": ("rows", "columns", "dims", "span"),
}
"""What `generate` draws, and the options that have a meaning for it."""

GENERATE = """\
what is drawn, and the rows × columns that it has by default:
  samples          images of z drawn from the prior (8 × 8)
  reconstructions  test images above what the model makes of them (1 pair of rows × 10)
  interpolation    a row from each test image to the next, along the straight line between their codes (6 × 10)
  traversal        a row for each latent dimension, from -SPAN to SPAN, the others as the first test image has them;
                   without --dims those in which the codes of the test images vary most (8 × 9)
  manifold         a plane of codes (20 × 20): of a model with two latent dimensions all of them; with --dims along
                   these two, the others 0; else along the first two principal components of the test images' codes

examples:
  {command} outputs/study/vanilla-vanilla/seed-0 --what samples --out samples.png
  {command} outputs/study --best val.total --what reconstructions --index 3 14 15 --out three.png
  {command} outputs/study/vanilla-vanilla/seed-0 --what traversal --dims 7 130 --span 4 --out walk.png
  {command} outputs/study/vanilla-vanilla/seed-0 --what manifold --rows 30 --columns 30 --out plane.png
"""


def generate(arguments: Sequence[str]) -> None:
    """Draw a sheet of pictures that shows what a model does."""
    parser = _parser("generate", "Draw what a trained model makes, as a PNG.", GENERATE)
    _add_run(parser)
    parser.add_argument("--what", choices=KINDS, default="samples", help="what is drawn, see below (default: samples)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file, which is replaced")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of images")
    parser.add_argument("--columns", type=int, metavar="N", help="images in a row")
    parser.add_argument("--count", type=int, metavar="N", help="samples or reconstructions in all, in place of --rows")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the samples (default: 0); elsewhere: test images drawn at random"
    )
    parser.add_argument(
        "--index", "--images", type=int, nargs="+", metavar="N", help="which test images, from 0 (default: the first)"
    )
    parser.add_argument("--dims", type=int, nargs="+", metavar="N", help="which latent dimensions, from 0")
    parser.add_argument(
        "--span",
        type=float,
        metavar="X",
        help="how far a traversal or manifold goes, in standard deviations (default: 3)",
    )
    parser.add_argument(
        "--scale",
        type=int,
        metavar="N",
        help="pixels of the sheet for a pixel of an image (default: as fits)",
    )
    given = parser.parse_args(arguments)
    chosen = {name: value for name in ("rows", "columns", "count", "seed", "index", "dims", "span", "scale")
              if (value := getattr(given, name)) is not None}  # fmt: skip
    for name in chosen:
        if name not in (*KINDS[given.what], "scale"):
            fitting = " and ".join(kind for kind, options in KINDS.items() if name in options)
            _refuse("Nothing was drawn", f"--{name}: has no meaning for {given.what}; it is for {fitting}")
    with _told("Nothing was drawn"):
        sweep.check_import("torch")
        from vae_lab import generate as sheets

        wanted = sheets.Wanted(given.what, **chosen)
        shown = sheets.generate(given.run, wanted, given.out, given.best, given.allow, given.device, given.data_root)
    _print(f"{given.out}: {shown}")


FORMATS = ("onnx", "torch_export", "safetensors")

EXPORT = """\
what goes into RUN/export/, in 32-bit floats, for any number of images:
  onnx          encoder.onnx and decoder.onnx, for ONNX Runtime and what else reads ONNX
  torch_export  encoder.pt2 and decoder.pt2, for torch.export.load; no vae_lab needed
  safetensors   model.safetensors, for vae_lab.load("RUN/export")
and README.md (a model card), its figures, config.yaml and result.json, so that the folder can go to a model hub as it
is.

The encoder takes images, (b, channels, height, width) in [0, 1], and gives mean and log_variance, (b, z) each; the
decoder takes z, (b, z), and gives images. Every file is loaded again and held against the model, to 1e-5, before it is
kept.

examples:
  {command} outputs/study/vanilla-vanilla/seed-0 --format onnx
  {command} outputs/study --best val.total --format onnx safetensors --license mit
"""


def export(arguments: Sequence[str]) -> None:
    """Write a model as files for other programs."""
    parser = _parser("export", "Write a trained model as files for other programs, with a model card.", EXPORT)
    _add_run(parser)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], help="one or several (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (default: RUN/export)")
    parser.add_argument(
        "--license",
        default="other",
        metavar="ID",
        help="of the weights, for the card, as hubs spell it: mit",
    )
    given = parser.parse_args(arguments)
    with _told("Nothing was exported"):
        sweep.check_import("torch")
        from vae_lab import export as exporting

        written = exporting.export(
            given.run, given.format, given.out, given.best, given.allow, given.device, given.data_root, given.license
        )
    for sentence in written.sentences:
        _print(sentence)
    _print(f"Files: {sweep.told(written.folder)}")


def _parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"vae-lab {command}",
        description=f"{description} The folder may come from somebody else: no code of its is run.",
        epilog=epilog.format(command=f"vae-lab {command}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Which model, and what it may need."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or a sweep's with --best")
    parser.add_argument("--best", metavar="METRIC", help="of a sweep the run where this is best, such as val.total")
    parser.add_argument("--device", default="cpu", help="where the model computes: cpu, cuda, mps (default: cpu)")
    parser.add_argument("--data-root", metavar="FOLDER", help="the data set's files, if not where they were")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NAME", help="a package of yours that a model is made of"
    )


@contextmanager
def _told(head: str) -> Iterator[None]:
    """What a user can cause ends the process with 1 and a sentence."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for the packages that are allowed
    try:
        yield
    except ConfigError as error:
        sweep.stop(error)
    except ValueError as error:  # LoadError, DataError and their kin
        _refuse(head, str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _refuse(head, f"{place}{error.strerror or error}")


def _refuse(head: str, reason: str) -> None:
    Console(stderr=True).print(f"{head}: {reason}", soft_wrap=True, highlight=False, markup=False)
    raise SystemExit(1)


def _print(sentence: str) -> None:
    Console().print(sentence, soft_wrap=True, highlight=False, markup=False)
