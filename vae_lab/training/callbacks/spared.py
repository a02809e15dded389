"""What a training is shown by does not end it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def spared(what: str) -> Iterator[None]:
    """Tell what went wrong and go on: the model is worth more than its pictures. A full disk is told by the run."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # images, latent spaces and labels of a user's own are of any kind
        log.warning("left out: %s (%s: %s)", what, type(error).__name__, error)
