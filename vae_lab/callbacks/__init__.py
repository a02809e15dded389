"""What watches a training and a test: clock, progress bar, monitor, pictures, metrics, TensorBoard's pages."""

from vae_lab.callbacks.history import History, Row
from vae_lab.callbacks.monitor import Monitor
from vae_lab.callbacks.pages import TensorBoardPages
from vae_lab.callbacks.pictures import PRIOR_SEED, Pictures, TakenPictures, take_pictures
from vae_lab.callbacks.progress import Progress, remaining
from vae_lab.callbacks.quality import Quality
from vae_lab.callbacks.together import Together

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
