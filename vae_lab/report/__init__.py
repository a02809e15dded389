"""From the files of runs to a report: tables, figures, statistics and findings. Imports no torch."""

from vae_lab.report.pages import Report, details, failures, measured, place, prepare, summary, write

__all__ = ["Report", "details", "failures", "measured", "place", "prepare", "summary", "write"]
