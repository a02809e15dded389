"""Train one model, or with `-m` a grid of them: `python train.py --help`."""

import sys

from vae_lab.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
