"""Binary images: each pixel becomes 0 or 1, by a threshold or at random with its grey level as probability."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from vae_lab.config.base import Binarize

WHITE = 255


def thresholded(images: UInt8[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Each pixel becomes black or white, whichever is nearer."""
    return (images > WHITE // 2).to(torch.uint8) * WHITE


def drawn(images: UInt8[Tensor, "..."], generator: torch.Generator) -> UInt8[Tensor, "..."]:
    """Each pixel x becomes white with probability x / 255; the generator is on the CPU."""
    levels = torch.randint(WHITE, images.shape, generator=generator, dtype=torch.uint8)
    return by_levels(images, levels)


def by_levels(images: UInt8[Tensor, "..."], levels: UInt8[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """White where a pixel is lighter than its level; levels are drawn uniformly from 0 to 254."""
    return (levels.to(images.device) < images).to(torch.uint8) * WHITE


def fixed(images: UInt8[Tensor, "..."], mode: Binarize, seed: int) -> UInt8[Tensor, "..."]:
    """The images as every evaluation sees them: equal seeds give equal images."""
    if mode == "none":
        return images
    return thresholded(images) if mode == "threshold" else drawn(images, torch.Generator().manual_seed(seed))
