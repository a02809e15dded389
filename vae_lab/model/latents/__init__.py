"""Shapes of codes, one file each."""
