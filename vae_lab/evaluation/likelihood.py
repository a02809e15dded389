"""How well a model explains unseen images, in nats per image, under its own likelihood."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
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

AT_ONCE = 2**20
"""Numbers of the images that are decoded at once: some 1,000 images of 28×28 pixels."""
MOST_CODES = 4096
"""Codes at once: a mixture's density needs numbers for each code and component."""
LEVEL_ERROR = 1e-3
"""The error of a grey level, in levels, that 32 bits may make."""
KEEP_EVERY = 30.0
"""Seconds between two writes of the bounds so far."""
BITS_FROM = 100
"""The number of samples of the bound from which bits per dimension are computed."""


def importance_weighted(
    vae: VAE,
    images: Float[Tensor, "b c h w"],
    counts: Sequence[int],
    generator: torch.Generator,
    *,
    with_levels: bool = False,
) -> dict[str, Float64[Tensor, " b"]]:
    """Importance-weighted bounds of each image in nats (Burda et al. 2016), and what they are worth.

    `iwae_<k>` is log (1/k) Σᵢ p(x, zᵢ) / q(zᵢ|x), zᵢ ~ q(z|x); k = 1 is the evidence lower bound. All bounds share the
    samples of the largest one; a smaller k splits them into groups and averages over the groups. `effective_samples` is
    (Σ w)² / Σ w² of the weights w of the largest bound. Densities of codes and sums of weights are in 64 bits, those of
    images in the model's 32.

    Args:
        vae: the model.
        images: with values in [0, 1].
        counts: the numbers of samples, k.
        generator: draws the samples.
        with_levels: add `levels`, the bound of `BITS_FROM` samples of the log-probability of the images' grey levels,
            if the likelihood has one; `BITS_FROM` must be among the counts.
    """
    densities = exact(vae)
    parameters = vae.encoder(images)
    posterior, exact_posterior = vae.posterior(parameters), densities.posterior(in_double(parameters))
    prior = densities.prior()
    weights, masses = [], []
    most = min(AT_ONCE // images.numel(), MOST_CODES // len(images))
    for samples in _split(max(counts), max(1, most)):
        with drawn_from(generator):
            z = posterior.sample(torch.Size([samples]))
        of_codes = prior.log_prob(in_double(z)) - exact_posterior.log_prob(in_double(z))
        x, repeated = vae.likelihood(vae.decoder(z.flatten(0, 1))), images.repeat(samples, 1, 1, 1)
        weights.append(in_double(x.log_prob(repeated)).view(samples, -1) + of_codes)
        mass = vae.likelihood.log_masses(x, repeated) if with_levels else None
        if mass is not None:
            masses.append(in_double(mass).view(samples, -1) + of_codes)
    log_weights = torch.cat(weights)
    found = {f"iwae_{k}": _bound(log_weights, k) for k in counts}
    if masses:
        found["levels"] = _bound(torch.cat(masses), BITS_FROM)
    found["effective_samples"] = (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
    return found


def _bound(log_weights: Float64[Tensor, "n b"], k: int) -> Float64[Tensor, " b"]:
    """The bound of k samples, averaged over the groups of k that there are."""
    groups = log_weights[: len(log_weights) // k * k].view(-1, k, log_weights.shape[1])
    return (groups.logsumexp(1) - math.log(k)).mean(0)


def are_levels(images: Float[Tensor, "b c h w"]) -> bool:
    """Whether pixels are among the 256 levels 0, 1/255, …, 1."""
    levels = images * 255
    return bool((levels - levels.round()).abs().max() < LEVEL_ERROR)


def _split(count: int, most: int) -> Iterator[int]:
    """Numbers of at most `most` that add up to a count."""
    for start in range(0, count, most):
        yield min(most, count - start)


def bounds(vae: VAE, test: HeldOutBatches, counts: Sequence[int], folder: Path | None = None) -> dict[str, list[float]]:
    """The bounds of each image of a data set: `iwae_<k>`, `effective_samples`, and `levels` where it exists.

    See `importance_weighted`. Each batch has a random stream of its own. If it takes long, a bar shows how far it is,
    and the bounds so far are kept in `folder`, so that the next attempt resumes from there. The folder must be trusted.
    """
    kept = _Kept.of(folder, vae, counts)
    saved, is_real, has_grey = time.monotonic(), vae.likelihood.data == "real", False
    for index, batch in enumerate(watched(test, test.count, f"Bounds of {max(counts):,} samples")):
        images = images_of(batch)
        has_grey = has_grey or bool(((images > 0) & (images < 1)).any())
        if not kept.has(index, len(images)):
            with_levels = BITS_FROM in counts and (not is_real or are_levels(images))
            generator = generator_for("iwae", index)
            bound = importance_weighted(vae, images, counts, generator, with_levels=with_levels)
            kept.batches.append({name: values.tolist() for name, values in bound.items()})
        if folder is not None and time.monotonic() > saved + KEEP_EVERY:
            with suppress(OSError):  # what is lost is the way back
                (folder / results.BOUNDS).parent.mkdir(exist_ok=True)
                results.write_text(folder / results.BOUNDS, kept.model_dump_json())
            saved = time.monotonic()
    if folder is not None:
        with suppress(OSError):
            (folder / results.BOUNDS).unlink(missing_ok=True)
    names = [name for name in kept.batches[0] if all(name in batch for batch in kept.batches)]
    if is_real and not has_grey and "levels" in names:  # 256 levels say nothing about black and white images
        names.remove("levels")
    return {name: [value for batch in kept.batches for value in batch[name]] for name in names}


def figures_of(found: Mapping[str, Sequence[float]], pixels: int) -> dict[str, float | None]:
    """The figures of a data set, from the bounds of its images.

    `bits_per_dim`, of the grey levels, is None where the likelihood has no probability of a level, or the images have
    no 256 levels; it is missing if the bound of 100 samples is.
    """
    figures: dict[str, float | None] = {
        name: math.fsum(values) / len(values) for name, values in found.items() if name != "levels"
    }
    if f"iwae_{BITS_FROM}" in found:
        levels = found.get("levels")
        figures["bits_per_dim"] = None if levels is None else -math.fsum(levels) / len(levels) / pixels / math.log(2)
    return figures


class _Kept(BaseModel):
    """The bounds of each image in the first batches, for a model and numbers of samples."""

    model: str
    """SHA-256 of its weights."""
    counts: list[int]
    """Numbers of samples."""
    limits: tuple[int, int] = (AT_ONCE, MOST_CODES)
    """On which the random numbers depend."""
    batches: list[dict[str, list[FiniteFloat]]] = []

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
        bounds_of = {f"iwae_{k}" for k in counts}
        return found if same and all(bounds_of <= {*one} for one in found.batches) else new


def _digest(vae: VAE) -> str:
    digest = hashlib.sha256()
    for name, tensor in vae.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
