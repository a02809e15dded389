"""The commands of vae_lab for the scripts beside this file; without its packages, the sentence of `train.py`."""

# Python 3.6 and later can read this file.
import sys
from os.path import abspath, dirname

sys.path.insert(0, dirname(dirname(abspath(__file__))))
from train import main as main
