"""A sweep: its runs are checked before the first one starts and summed up after the last; Hydra's launchers."""

from vae_lab.sweep.callback import SweepCallback

__all__ = ["SweepCallback"]
