"""Measure the cost of training against other ways to write it, and how the cost grows: `make bench`."""
