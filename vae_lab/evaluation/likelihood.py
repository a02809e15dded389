"""How well a model explains unseen images, in nats per image, under its own likelihood."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float, Float64
from pydantic import BaseModel, FiniteFloat
from torch import Tensor

from vae_lab import results
from vae_lab.config.terminal import watched
from vae_lab.data.batches import images_of
from vae_lab.evaluation.batches import HeldOutBatches, exact, generator_for, in_double
from vae_lab.model.randomness import drawn_from
from vae_lab.model.vae import VAE
from vae_lab.results.reading import read_json

LEVEL_BITS = 8
"""Bits per grey level: the density of a real-valued likelihood is treated as constant within each of 256 levels."""
AT_ONCE = 2**20
"""Numbers of the images that are decoded at once: some 1,000 images of 28×28 pixels."""
MOST_CODES = 4096
"""Codes at once: a mixture's density needs numbers for each code and component."""
KEEP_EVERY = 30.0
"""Seconds between two writes of the bounds so far."""


def importance_weighted(
    vae: VAE, images: Float[Tensor, "b c h w"], counts: Sequence[int], generator: torch.Generator
) -> dict[int, Float64[Tensor, " b"]]:
    """Importance-weighted bounds of each image in nats, by their number of samples k (Burda et al. 2016).

    log (1/k) Σᵢ p(x, zᵢ) / q(zᵢ|x), zᵢ ~ q(z|x). k = 1 is the evidence lower bound. All bounds share the samples of the
    largest one; a smaller k splits them into groups and averages over the groups. Densities of codes and sums of
    weights are in 64 bits, those of images in the model's 32.
    """
    densities = exact(vae)
    parameters = vae.encoder(images)
    posterior, exact_posterior = vae.posterior(parameters), densities.posterior(in_double(parameters))
    prior = densities.prior()
    weights = []
    most = min(AT_ONCE // images.numel(), MOST_CODES // len(images))
    for samples in _split(max(counts), max(1, most)):
        with drawn_from(generator):
            z = posterior.sample(torch.Size([samples]))
        of_codes = prior.log_prob(in_double(z)) - exact_posterior.log_prob(in_double(z))
        of_images = vae.likelihood(vae.decoder(z.flatten(0, 1))).log_prob(images.repeat(samples, 1, 1, 1))
        weights.append(in_double(of_images).view(samples, -1) + of_codes)
    log_weights = torch.cat(weights)
    return {
        k: (log_weights[: len(log_weights) // k * k].view(-1, k, len(images)).logsumexp(1) - math.log(k)).mean(0)
        for k in counts
    }


def _split(count: int, most: int) -> Iterator[int]:
    """Numbers of at most `most` that add up to a count."""
    for start in range(0, count, most):
        yield min(most, count - start)


def bounds(vae: VAE, test: HeldOutBatches, counts: Sequence[int], folder: Path | None = None) -> dict[str, float]:
    """The mean bounds of a data set as `iwae_<k>`, and `bits_per_dim`, computed from the bound of 100 samples.

    Each batch has a random stream of its own. If it takes long, a bar shows how far it is, and the bounds so far are
    kept in `folder`, so that the next attempt resumes from there. The folder must be trusted.
    """
    kept = _Kept.of(folder, vae, counts)
    found: dict[int, list[float]] = {k: [] for k in counts}
    saved, pixels = time.monotonic(), 1
    for index, batch in enumerate(watched(test, test.count, f"Bounds of {max(counts):,} samples")):
        images = images_of(batch)
        pixels = images[0].numel()
        if not kept.has(index, len(images)):
            bound = importance_weighted(vae, images, counts, generator_for("iwae", index))
            kept.batches.append({k: values.tolist() for k, values in bound.items()})
        for k, values in kept.batches[index].items():
            found[k] += values
        if folder is not None and time.monotonic() > saved + KEEP_EVERY:
            with suppress(OSError):  # what is lost is the way back
                (folder / results.BOUNDS).parent.mkdir(exist_ok=True)
                results.write_text(folder / results.BOUNDS, kept.model_dump_json())
            saved = time.monotonic()
    if folder is not None:
        with suppress(OSError):
            (folder / results.BOUNDS).unlink(missing_ok=True)
    figures = {f"iwae_{k}": math.fsum(values) / len(values) for k, values in found.items()}
    if 100 in found:
        offset = LEVEL_BITS if vae.likelihood.data == "real" else 0  # other likelihoods are masses, not densities
        figures["bits_per_dim"] = offset - figures["iwae_100"] / (pixels * math.log(2))
    return figures


class _Kept(BaseModel):
    """The bounds of each image in the first batches, for a model and numbers of samples."""

    model: str
    """SHA-256 of its weights."""
    counts: list[int]
    limits: tuple[int, int] = (AT_ONCE, MOST_CODES)
    """On which the random numbers depend."""
    batches: list[dict[int, list[FiniteFloat]]] = []

    def has(self, index: int, images: int) -> bool:
        """Whether the bounds of a batch with so many images are there; those from a batch unlike it on are dropped."""
        if index < len(self.batches) and any(len(values) != images for values in self.batches[index].values()):
            del self.batches[index:]
        return index < len(self.batches)

    @classmethod
    def of(cls, folder: Path | None, vae: VAE, counts: Sequence[int]) -> "_Kept":
        """Those that an earlier attempt left in a folder, else none."""
        new = cls(model=_digest(vae) if folder is not None else "", counts=[*counts])
        try:
            found = cls.model_validate(read_json(folder / results.BOUNDS)) if folder is not None else new
        except (OSError, ValueError):  # none, or a damaged one
            return new
        same = (found.model, found.counts, found.limits) == (new.model, new.counts, new.limits)
        return found if same and all({*one} == {*counts} for one in found.batches) else new


def _digest(vae: VAE) -> str:
    digest = hashlib.sha256()
    for name, tensor in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
