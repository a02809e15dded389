"""Sheets of pictures made by a trained model: `python scripts/generate.py --help`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
