"""Which way each figure of a result is better, and what its meaning hangs on."""

import re
from typing import Literal

Direction = Literal["lower", "higher"]

_BETTER: dict[str, Direction] = {
    "total": "lower",
    "reconstruction": "lower",
    "elbo": "higher",
    "iwae": "higher",  # of any number of samples
    "bits_per_dim": "lower",
    "mse": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "fid_reconstructions": "lower",
    "fid_samples": "lower",
    "fid_samples_gaussian": "lower",
    "fid_samples_mixture": "lower",
    "probe_accuracy": "higher",
    "train_seconds": "lower",
    "images_per_second": "higher",
    "peak_bytes": "lower",
}


_OF_OBJECTIVE = ("total", "elbo", "iwae", "bits_per_dim")


def better(metric: str) -> Direction | None:
    """Whether less or more of a figure is better, by its dotted name; None where neither is."""
    return _BETTER.get(kind(metric))


def of_objective(metric: str) -> bool:
    """Whether the objective sets what a figure means: β is the likelihood's variance."""
    return kind(metric) in _OF_OBJECTIVE


def kind(metric: str) -> str:
    """What a figure measures: its name without its place in the result, and without the number of samples."""
    return re.sub(r"_\d+$", "", metric.rpartition(".")[2])
