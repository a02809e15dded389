"""Held-out metrics of a model."""
