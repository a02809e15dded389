"""The catalogue of figures: heading, unit, digits, direction and meaning of each.

Tables, plots, terminal, model card, statistics and docs read it. The row of a user's own metric is in the `metrics` of
its runs; for a term of a user's own objective the runs have its unit.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

Direction = Literal["lower", "higher"]
Hangs = Literal["objective", "units", "likelihood", ""]
"""What a figure's meaning depends on: the whole objective, the units of its terms, the data of its likelihood."""


class Figure(NamedTuple):
    """A row of the catalogue."""

    name: str
    """Its dotted name in `result.json`."""
    heading: str
    unit: str = ""
    """Shown after the heading; empty if there is none, or if the heading contains it."""
    digits: int = 4
    better: Direction | None = None
    meaning: str = ""
    switch: str = ""
    """The key of `metrics` that requests it; empty if it is always computed."""
    hangs_on: Hangs = ""
    scale: float = 1.0
    """The factor by which the stored number is multiplied for display."""
    table: str = ""
    """Its table in the report."""
    short: str = ""
    """The heading in the terminal's narrow tables."""

    @property
    def label(self) -> str:
        """Heading and unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    @property
    def brief(self) -> str:
        """The heading for narrow tables."""
        return self.short or self.label


LIKELIHOOD, LOOKS, LATENT, COST = (
    "Likelihood of the test images", "Reconstructions and samples", "Use of the latent space", "Cost",
)  # fmt: skip
NATS, NATS_PER_DIMENSION = "nats per image", "nats per latent dimension"
SQUARED_ERROR = "squared error per pixel"

_SPLITS = {"test": "test", "val": "val", "train": "train"}
_MEANINGS = {
    "total": "what was minimised",
    "reconstruction": "how far reconstructions through one sample of the posterior are from the images",
    "kl": "KL divergence of the posterior from the prior",
}
_TERM_ROWS: dict[str, tuple[str, Direction | None, Hangs]] = {
    "total": ("total", "lower", "objective"),
    "reconstruction": ("recon.", "lower", "units"),
    "kl": ("KL", None, "units"),
}
_TERMS = [
    Figure(f"{split}.{term}", f"{split} {heading}", better=better, meaning=_MEANINGS[term], hangs_on=hangs)
    for split in _SPLITS
    for term, (heading, better, hangs) in _TERM_ROWS.items()
]

CATALOGUE: dict[str, Figure] = {
    row.name: row
    for row in (
        *_TERMS,
        Figure("timing.train_seconds", "training time", "s", 2, "lower", "seconds of all training steps", table=COST,
               short="time, s"),
        Figure("timing.images_per_second", "images/s", "", 0, "higher", "images trained on per second", table=COST),
        Figure("timing.cpu_share", "share of processors", "", 2, None,
               "processor time of the training over its seconds times its threads: below 1 it waited or shared them"),
        Figure("model.parameters", "parameters", "", 0, None, "weights of the model", table=COST),
        Figure("model.flops_per_image", "MFLOPs/image", "", 1, None, "one image forwards", scale=1e-6, table=COST,
               short="MFLOPs"),
        Figure("memory.peak_bytes", "peak memory", "MB", 0, "lower", "highest memory of the training", scale=1e-6,
               table=COST, short="MB"),
        Figure("test.elbo", "ELBO", "nats", 1, "higher", "evidence lower bound per image", hangs_on="likelihood",
               table=LIKELIHOOD, short="ELBO"),
        *(
            Figure(f"test.iwae_{k}", f"IWAE-{k}", "nats", 1, "higher",
                   f"importance-weighted bound of {k} sample{'s' if k > 1 else ''} per image", "iwae", "likelihood",
                   table=LIKELIHOOD, short="IWAE" if k == 100 else "")
            for k in (1, 10, 100)
        ),
        Figure("test.effective_samples", "effective samples", "", 1, None,
               "how many of the samples of the largest bound count; near 1 it is far below ln p(x)", "iwae",
               table=LIKELIHOOD),
        Figure("test.bits_per_dim", "bits/dim", "", 3, "lower", "bits for each grey level of an image", "iwae",
               "likelihood", table=LIKELIHOOD),
        Figure("test.mse", "MSE of the mean", "", 4, "lower",
               "mean squared error per pixel, through the mean of the posterior", table=LOOKS),
        Figure("test.psnr", "PSNR", "dB", 2, "higher", "peak signal-to-noise ratio of reconstructions", table=LOOKS,
               short="PSNR"),
        Figure("test.ssim", "SSIM", "", 3, "higher", "structural similarity of reconstructions, 1 at best",
               table=LOOKS),
        Figure("test.fid_reconstructions", "Fréchet distance of reconstructions", "", 2, "lower",
               "Fréchet distance of reconstructions from the test images, in the features of a small Fashion-MNIST "
               "classifier, not Inception's", "frechet", table=LOOKS),
        Figure("test.fid_samples", "Fréchet distance of samples", "", 2, "lower", "the same of samples of the prior",
               "frechet", table=LOOKS, short="Fréchet"),
        Figure("test.fid_floor", "Fréchet distance of real images", "", 2, None,
               "the same of as many training images: what a perfect model would have", "frechet"),
        Figure("test.fid_samples_gaussian", "Fréchet distance, fitted Gaussian", "", 2, "lower",
               "the same of samples of a Gaussian fitted to the training codes", "samplers"),
        Figure("test.fid_samples_mixture", "Fréchet distance, fitted mixture", "", 2, "lower",
               "the same of samples of a mixture of Gaussians fitted to the training codes", "samplers"),
        Figure("test.probe_accuracy", "probe accuracy", "", 3, "higher",
               "share of the test images whose class a linear classifier finds from the posterior means", "probe",
               table=LATENT),
        Figure("test.active_units", "active units", "", 1, None,
               "latent dimensions whose posterior mean varies over the test images", table=LATENT, short="active"),
        Figure("test.rate_bits", "rate", "bits/image", 1, None, "bits of the codes of an image, all equally likely",
               table=LATENT),
        Figure("test.codebook_used", "codes used", "", 3, None, "share of the codebook that the test images use",
               table=LATENT),
        Figure("test.codebook_perplexity", "codebook perplexity", "", 1, None,
               "number of codes which, used equally often, would have the entropy of those of the test images",
               table=LATENT),
        Figure("test.dead_units", "dead units", "", 1, None, "channels that are the same for all test images",
               table=LATENT),
        Figure("test.mutual_information_low", "information ≥", "nats", 1, None,
               "lower bound of the information that z has about its image; ln of the number of images at most",
               table=LATENT),
        Figure("test.mutual_information_high", "information ≤", "nats", 1, None, "upper bound of it", table=LATENT),
        Figure("test.aggregate_kl_low", "aggregate KL ≥", "nats", 1, None,
               "lower bound of the divergence of all codes together from the prior", table=LATENT),
        Figure("test.aggregate_kl_high", "aggregate KL ≤", "nats", 1, None, "upper bound of it", table=LATENT),
    )
}  # fmt: skip
"""Dotted name → row, in the order of the report."""

LISTS = ("kl_per_dimension",)
"""Test figures that are lists."""
OF_TEST = (
    *(name.removeprefix("test.") for name in CATALOGUE if name.startswith("test.") and CATALOGUE[name] not in _TERMS),
    *LISTS,
)
"""The keys of `test` in `result.json`, without the terms."""
TABLES = (LIKELIHOOD, LOOKS, LATENT)
"""Tables of test metrics in a report."""


def in_table(table: str) -> list[str]:
    """The names of a table's figures."""
    return [name for name, row in CATALOGUE.items() if row.table == table]


def find(name: str, further: Mapping[str, Any] | None = None, units: Mapping[str, str] | None = None) -> Figure:
    """The row of a figure, by its dotted name.

    Args:
        name: such as `test.elbo`.
        further: rows of a user's test metrics, as in `metrics.further` of a run.
        units: the terms of the runs' objectives → their units.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    of_samples = re.fullmatch(r"test\.iwae_(\d+)", name)
    if of_samples:
        return CATALOGUE["test.iwae_10"]._replace(name=name, heading=f"IWAE-{of_samples[1]}", short="")
    family, _, rest = name.partition(".")
    node = (further or {}).get(rest) if family == "test" else None
    if isinstance(node, Mapping):
        better = node.get("better")
        return Figure(
            name, str(node.get("heading", rest)), str(node.get("unit", "")), int(node.get("digits", 3)),
            better if better in ("lower", "higher") else None, str(node.get("meaning", "")), "further",
        )  # fmt: skip
    if family in _SPLITS and rest in (units or {}):
        return Figure(name, f"{_SPLITS[family]} {rest}", meaning=f"a term of the objective, in {(units or {})[rest]}",
                      hangs_on="units")  # fmt: skip
    return Figure(name, name.removeprefix("test."))


def terms_first(terms: Iterable[str]) -> list[str]:
    """Terms of an objective in the order in which they are shown: total, reconstruction, kl, then the others."""
    known = ("total", "reconstruction", "kl")
    found = dict.fromkeys(terms)
    return [*(term for term in known if term in found), *(term for term in found if term not in known)]
