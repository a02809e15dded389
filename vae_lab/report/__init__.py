"""The report of runs: tables, figures, statistics and findings. Imports no torch."""

from vae_lab.report.pages import Report, place, prepare, write

__all__ = ["Report", "place", "prepare", "write"]
