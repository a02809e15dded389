"""The commands of vae_lab for the scripts beside this file, or a sentence about what this Python lacks."""

# Python 3.6 and later can read this file, to say that it is too old.
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"vae_lab needs Python 3.11 or newer, but this is Python {found}: `make setup` makes .venv with one")
try:
    from vae_lab.cli import main as main
except ModuleNotFoundError as error:
    if (error.name or "").startswith("vae_lab."):
        raise
    sys.exit(f"{sys.executable} has no package {error.name}: run `make setup`, then .venv/bin/python {sys.argv[0]} …")
