"""Export a trained model to files for other programs, with a model card: `python scripts/export.py --help`."""

import sys

from commands import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
