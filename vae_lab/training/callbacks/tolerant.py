"""A failure in logging or plotting must not stop training."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def failures_logged(what: str) -> Iterator[None]:
    """Log an exception as a warning and continue. An `OSError`, such as a full disk, is raised: it fails the run."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a user's images, latent spaces and labels can raise anything
        log.warning("left out: %s (%s: %s)", what, type(error).__name__, error)
