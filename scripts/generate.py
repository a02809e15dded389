"""Sheets of pictures made by a trained model: `python scripts/generate.py --help`."""

import sys

from commands import main

if __name__ == "__main__":
    main(["generate", *sys.argv[1:]])
