"""The commands. torch is imported only once the configuration is known to be valid."""

from vae_lab.cli.main import main

__all__ = ["main"]
