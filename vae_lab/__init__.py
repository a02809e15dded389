"""vae_lab: compare variational autoencoders and trust the answer."""

__version__ = "0.1.0"
