"""Images: from files to training, validation and test tensors, and from those to batches on the model's device."""

from vae_lab.config.fingerprint import cache_folder
from vae_lab.data.batches import Batch, Batches, ImageModule, Split, Streamed, derived_seed
from vae_lab.data.files import DataError, check_idx, check_sums, find_files
from vae_lab.data.folder import FolderData
from vae_lab.data.sets import ImageData, subset_order

__all__ = [
    "Batch",
    "Batches",
    "DataError",
    "FolderData",
    "ImageData",
    "ImageModule",
    "Split",
    "Streamed",
    "cache_folder",
    "check_idx",
    "check_sums",
    "derived_seed",
    "find_files",
    "subset_order",
]
