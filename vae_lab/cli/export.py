"""`vae-lab export`: a model as files for other programs."""

from collections.abc import Sequence
from pathlib import Path

from vae_lab.cli.arguments import add_run, parser_of, refusing
from vae_lab.config.terminal import say, shown
from vae_lab.sweep import checks

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
    parser = parser_of("export", "Write a trained model as files for other programs, with a model card.", EXPORT)
    add_run(parser)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], help="one or several (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (default: RUN/export)")
    parser.add_argument(
        "--license",
        default="other",
        metavar="ID",
        help="of the weights, for the card, as hubs spell it: mit",
    )
    given = parser.parse_args(arguments)
    with refusing("Nothing was exported"):
        checks.check_import("torch")
        from vae_lab.trained import export as exporting

        written = exporting.export(
            given.run, given.format, given.out, given.best, given.allow, given.device, given.data_root, given.license
        )
    for sentence in written.sentences:
        say(sentence)
    say(f"Files: {shown(written.folder)}")
