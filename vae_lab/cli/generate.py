"""`vae-lab generate`: sheets of pictures that show what a model does."""

from collections.abc import Sequence
from pathlib import Path

from vae_lab.cli.arguments import add_run, parser_of, refuse, refusing
from vae_lab.config.terminal import say
from vae_lab.sweep import checks

KINDS = {
    "samples": ("rows", "columns", "count", "seed", "sampler"),
    "reconstructions": ("rows", "columns", "count", "seed", "index"),
    "interpolation": ("rows", "columns", "seed", "index"),
    "traversal": ("rows", "columns", "seed", "index", "dims", "span"),
    "manifold": ("rows", "columns", "dims", "span"),
    "pseudo_inputs": ("rows", "columns", "count"),
    "codebook": ("rows", "columns", "count"),
}
"""The kinds of sheet that `generate` draws, and the options of each."""

KINDS_OF_SAMPLER = ("gaussian", "mixture")
"""`samplers.KINDS`, whose module imports torch."""

GENERATE = """\
what is drawn, and the rows × columns that it has by default:
  samples          images of z drawn from the prior, or from a density fitted to the training codes (8 × 8)
  reconstructions  test images above what the model makes of them (1 pair of rows × 10)
  interpolation    a row from each test image to the next, along the straight line between their codes (6 × 10)
  traversal        a row for each latent dimension, from -SPAN to SPAN, the others as the first test image has them;
                   without --dims those in which the codes of the test images vary most (8 × 9)
  manifold         a plane of codes (20 × 20): of a model with two latent dimensions all of them; with --dims along
                   these two, the others 0; else along the first two principal components of the test images' codes
  pseudo_inputs    the trained images of prior=vamp above what the model makes of them (5 pairs of rows × 10)
  codebook         codes of posterior=vq, fsq or lfq, from the first to the last, each in all positions (8 × 8)

examples:
  {command} outputs/study/vanilla-vanilla/seed-0 --what samples --out samples.png
  {command} outputs/study/vanilla-vanilla/seed-0 --sampler mixture --out samples.png
  {command} outputs/study --best val.total --what reconstructions --index 3 14 15 --out three.png
  {command} outputs/study/vanilla-vanilla/seed-0 --what traversal --dims 7 130 --span 4 --out walk.png
  {command} outputs/study/vanilla-vanilla/seed-0 --what manifold --rows 30 --columns 30 --out plane.png
"""


def generate(arguments: Sequence[str]) -> None:
    """Draw a sheet of pictures that shows what a model does."""
    parser = parser_of("generate", "Draw what a trained model makes, as a PNG.", GENERATE)
    add_run(parser)
    parser.add_argument("--what", choices=KINDS, default="samples", help="what is drawn, see below (default: samples)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the PNG file, which is replaced")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of images")
    parser.add_argument("--columns", type=int, metavar="N", help="images in a row")
    parser.add_argument("--count", type=int, metavar="N", help="samples or reconstructions in all, in place of --rows")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the samples (default: 0); elsewhere: test images drawn at random"
    )
    parser.add_argument(
        "--sampler",
        choices=("prior", *KINDS_OF_SAMPLER),
        help="what samples are drawn from: the prior (default), or a Gaussian or a mixture of ten fitted to codes",
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
    chosen = {name: value for name in ("rows", "columns", "count", "seed", "sampler", "index", "dims", "span", "scale")
              if (value := getattr(given, name)) is not None}  # fmt: skip
    for name in chosen:
        if name not in (*KINDS[given.what], "scale"):
            fitting = " and ".join(kind for kind, options in KINDS.items() if name in options)
            refuse("Nothing was drawn", f"--{name}: has no meaning for {given.what}; it is for {fitting}")
    with refusing("Nothing was drawn"):
        checks.check_import("torch")
        from vae_lab.trained import sheets as sheets

        wanted = sheets.Wanted(given.what, **chosen)
        shown = sheets.generate(given.run, wanted, given.out, given.best, given.allow, given.device, given.data_root)
    say(f"{given.out}: {shown}")
