"""Where a run computes and where its images are kept."""

import logging
import os

import torch

from vae_lab.config import Config

log = logging.getLogger(__name__)

SHARE = 0.5
"""Of a device's free memory, or of the machine's, that images may take."""


def on_gpu(settings: Config) -> bool:
    """Whether a run is trained on a GPU of CUDA's."""
    return settings.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def home_of(images: int, device: torch.device) -> torch.device:
    """Where so many bytes of images are best kept: on the device if they take no more than half of what is free."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    if images <= SHARE * free:
        return device
    log.warning("images: %s do not fit on %s beside a model; they stay in memory", megabytes(images), device)
    return torch.device("cpu")


def fits_in_memory(images: int) -> bool:
    """Whether so many bytes take no more than half of the machine's free memory; where that is unknown, 4 GB."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 8 * 10**9
    return images <= SHARE * free


def megabytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:,.1f} MB"
