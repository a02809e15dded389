"""The test metrics of finished runs from their weights: `python scripts/evaluate.py outputs/NAME/CELL/seed-N`."""

import sys

from commands import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
