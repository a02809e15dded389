"""What a training costs beside other ways to write it: `python scripts/benchmark.py`, or `make bench`."""

import argparse
import json
import logging
import os
from pathlib import Path

from vae_lab.benchmark.measure import FULL, PARTS, QUICK, surroundings
from vae_lab.benchmark.page import insert, page, plot
from vae_lab.training.machine import freeze_imports


def main() -> None:
    """Measure, print the tables, and write tables, figures and a plot to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure (default: all): {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once each: whether it works, not how fast")
    parser.add_argument("--repeats", type=int, metavar="N", help="of each measurement (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmark"), metavar="FOLDER")
    parser.add_argument("--document", type=Path, metavar="FILE", help="a Markdown file that the tables go into")
    given = parser.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    if given.repeats is not None and given.repeats < 1:
        parser.error(f"--repeats must be at least 1, but is {given.repeats}")
    amount = QUICK if given.quick else FULL
    amount = amount.changed(repeats=given.repeats, threads=given.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    freeze_imports()  # as the training command does
    found = {"surroundings": surroundings(amount)}
    for part in given.parts or PARTS:
        print(f"measuring: {part}", flush=True)
        found[part] = PARTS[part](amount)
    found["surroundings"]["load_after"] = os.getloadavg()[0]
    text = page(found)
    print(f"\n{text}")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "benchmark.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (given.out / "benchmark.md").write_text(text, encoding="utf-8")
    canvas = plot(found)
    if canvas is not None:
        canvas.savefig(given.out / "benchmark.png", dpi=130)
    if given.document is not None:
        insert(given.document, text)
    print(f"Figures: {given.out / 'benchmark.json'}")


if __name__ == "__main__":
    main()
