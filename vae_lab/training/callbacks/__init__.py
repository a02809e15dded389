"""Callbacks of training and test: clock, progress bar, monitor, pictures, metrics, TensorBoard's pages."""

from vae_lab.training.callbacks.history import History, Row
from vae_lab.training.callbacks.monitor import Monitor
from vae_lab.training.callbacks.pages import TensorBoardPages
from vae_lab.training.callbacks.pictures import PRIOR_SEED, Pictures, TakenPictures, take_pictures
from vae_lab.training.callbacks.progress import Progress, remaining
from vae_lab.training.callbacks.quality import Quality
from vae_lab.training.callbacks.together import Together

__all__ = [
    "PRIOR_SEED",
    "History",
    "Monitor",
    "Pictures",
    "Progress",
    "Quality",
    "Row",
    "TakenPictures",
    "TensorBoardPages",
    "Together",
    "remaining",
    "take_pictures",
]
