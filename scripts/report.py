"""The report of one sweep or several: `python scripts/report.py outputs/NAME`."""

import sys

from commands import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
