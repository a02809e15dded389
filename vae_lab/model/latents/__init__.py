"""Shapes of latent codes, one file each."""
