"""Sweeps: check the runs before the first one starts, summarise them after the last, and set up the launcher."""

from vae_lab.sweep.callback import SweepCallback

__all__ = ["SweepCallback"]
