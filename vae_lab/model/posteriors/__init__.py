"""Posteriors, one file each."""
