"""Which way each figure of a result is better."""

from typing import Literal

Direction = Literal["lower", "higher"]

_BETTER: dict[str, Direction] = {
    "total": "lower",
    "reconstruction": "lower",
    "elbo": "higher",
    "iwae_1": "higher",
    "iwae_10": "higher",
    "iwae_100": "higher",
    "bits_per_dim": "lower",
    "mse": "lower",
    "psnr": "higher",
    "ssim": "higher",
    "fid_reconstructions": "lower",
    "fid_samples": "lower",
    "probe_accuracy": "higher",
    "train_seconds": "lower",
    "images_per_second": "higher",
    "peak_bytes": "lower",
}


def better(metric: str) -> Direction | None:
    """Whether less or more of a figure is better, by its dotted name; None where neither is."""
    return _BETTER.get(metric.rpartition(".")[2])
