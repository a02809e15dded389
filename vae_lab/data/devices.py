"""The device of a run, and the device of its images."""

import logging
import os

import torch

from vae_lab.config import Config

log = logging.getLogger(__name__)

SHARE = 0.5
"""The share of a device's or the machine's free memory that images may take."""


def on_gpu(settings: Config) -> bool:
    """Whether a run is trained on a CUDA GPU."""
    return settings.trainer.accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()


def home_of(images: int, device: torch.device) -> torch.device:
    """The device for this many bytes of images: `device` if they take at most half of its free memory, else the CPU."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    if images <= SHARE * free:
        return device
    log.warning("images: %s do not fit on %s beside a model; they stay in memory", megabytes(images), device)
    return torch.device("cpu")


def fits_in_memory(images: int) -> bool:
    """Whether this many bytes take at most half of the machine's free memory, or 4 GB where that is unknown."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 8 * 10**9
    return images <= SHARE * free


def megabytes(count: int) -> str:
    """A number of bytes as text, in megabytes."""
    return f"{count / 1e6:,.1f} MB"
