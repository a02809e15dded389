"""`vae-lab report`: the report of existing runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vae_lab.cli.arguments import existing


def report(arguments: Sequence[str]) -> None:
    """Write the report of existing runs."""
    parser = argparse.ArgumentParser(
        prog="vae-lab report",
        description="Write the report of one sweep, or of several together, from the files that their runs left.",
        epilog="example: vae-lab report outputs/five_seeds",
    )
    parser.add_argument(
        "folders", nargs="+", type=existing, metavar="FOLDER", help="outputs/<name>, or a cell's or run's"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes (default: outputs/<name>/report)")
    parser.add_argument(
        "--all-pictures", action="store_true", help="figures for every cell, not only for the first twelve"
    )
    given = parser.parse_args(arguments)
    from vae_lab.report.terminal import show_report  # pandas, scipy and matplotlib take seconds

    if not show_report(given.folders, given.out, all_pictures=given.all_pictures):
        raise SystemExit(1)
