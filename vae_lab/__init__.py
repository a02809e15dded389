"""vae_lab: compare variational autoencoders and trust the answer."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_lab.data.folder import FolderData
    from vae_lab.data.sets import ImageData
    from vae_lab.model.interfaces import Latent, Likelihood, Posterior, Prior
    from vae_lab.model.networks import Decoder, Encoder
    from vae_lab.model.vae import VAE
    from vae_lab.objectives.base import Objective
    from vae_lab.trained.foreign import LoadError
    from vae_lab.trained.loading import load

__version__ = "0.2.0"
__all__ = [
    "VAE",
    "Decoder",
    "Encoder",
    "FolderData",
    "ImageData",
    "Latent",
    "Likelihood",
    "LoadError",
    "Objective",
    "Posterior",
    "Prior",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for (PEP 562): most of them need torch."""
    from vae_lab.config import names

    module = names.homes().get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    from vae_lab.config import names

    return sorted({*globals(), *names.homes()})
