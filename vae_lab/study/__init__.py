"""Gather, compare and plot many runs. Imports no torch."""
