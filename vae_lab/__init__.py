"""vae_lab: compare variational autoencoders and trust the answer."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_lab.model.vae import VAE
    from vae_lab.trained.foreign import LoadError
    from vae_lab.trained.loading import load

__version__ = "0.1.0"
__all__ = ["VAE", "LoadError", "__version__", "load"]

_HOMES = {"VAE": "vae_lab.model.vae", "LoadError": "vae_lab.trained.foreign", "load": "vae_lab.trained.loading"}


def __getattr__(name: str) -> Any:
    """What takes torch is imported when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
