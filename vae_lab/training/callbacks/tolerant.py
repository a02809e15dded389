"""A failure in logging or plotting must not stop training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vae_lab.training.module import LitVAE

log = logging.getLogger(__name__)


@contextmanager
def failures_logged(what: str, module: LitVAE) -> Iterator[None]:
    """Log an exception as a warning and continue; a file that cannot be written is also noted in the run's result."""
    try:
        yield
    except OSError as error:  # such as a full disk
        module.not_written(what, error)
    except Exception as error:  # a user's images, latent spaces and labels can raise anything
        log.warning("left out: %s (%s: %s)", what, type(error).__name__, error)
