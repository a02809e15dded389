"""Objectives: the losses that training minimises, as named terms."""
