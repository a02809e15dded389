"""A study's tables, for every kind of page, and how a figure is written in them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vae_lab.results.figures import better
from vae_lab.study.gather import Study
from vae_lab.study.statistics import LEVEL, MOST_CELLS, RECORD, Cell, Comparison, Effect, Pair, estimate, holm


class Published(NamedTuple):
    """A row of the experiment that this project grew out of."""

    kl: float
    reconstruction: float
    total: float
    seconds: float


# 3,000 Fashion-MNIST images, 10 epochs, one run each; hardware not stated.
PUBLISHED = {
    "vanilla-vanilla": Published(0.4128, 0.0149, 0.0190, 36.06),
    "encdec-vanilla": Published(0.4147, 0.0151, 0.0192, 26.16),
    "vanilla-encdec": Published(0.4082, 0.0163, 0.0204, 28.15),
    "encdec-encdec": Published(0.4077, 0.0168, 0.0209, 31.67),
}

MISSING = "—"


class Metric(NamedTuple):
    """How a figure is told: its heading, its unit, its digits."""

    heading: str
    scale: float = 1.0
    digits: int = 4


METRICS = {
    "test.total": Metric("test total"),
    "test.reconstruction": Metric("test recon."),
    "test.kl": Metric("test KL"),
    "val.total": Metric("val total"),
    "val.reconstruction": Metric("val recon."),
    "val.kl": Metric("val KL"),
    "train.total": Metric("train total"),
    "train.reconstruction": Metric("train recon."),
    "train.kl": Metric("train KL"),
    "timing.train_seconds": Metric("training time, s", digits=2),
    "timing.images_per_second": Metric("images/s", digits=0),
    "model.parameters": Metric("parameters", digits=0),
    "model.flops_per_image": Metric("MFLOPs/image", scale=1e-6, digits=1),
    "memory.peak_bytes": Metric("peak memory, MB", scale=1e-6, digits=0),
    "test.elbo": Metric("ELBO, nats", digits=1),
    "test.iwae_1": Metric("IWAE-1, nats", digits=1),
    "test.iwae_10": Metric("IWAE-10, nats", digits=1),
    "test.iwae_100": Metric("IWAE-100, nats", digits=1),
    "test.bits_per_dim": Metric("bits/dim", digits=3),
    "test.mse": Metric("MSE of the mean"),
    "test.psnr": Metric("PSNR, dB", digits=2),
    "test.ssim": Metric("SSIM", digits=3),
    "test.fid_reconstructions": Metric("FID of reconstructions", digits=2),
    "test.fid_samples": Metric("FID of samples", digits=2),
    "test.fid_samples_gaussian": Metric("FID, fitted Gaussian", digits=2),
    "test.fid_samples_mixture": Metric("FID, fitted mixture", digits=2),
    "test.probe_accuracy": Metric("probe accuracy", digits=3),
    "test.active_units": Metric("active units", digits=1),
    "test.dead_units": Metric("dead units", digits=1),
    "test.mutual_information_low": Metric("information ≥, nats", digits=1),
    "test.mutual_information_high": Metric("information ≤, nats", digits=1),
    "test.aggregate_kl_low": Metric("aggregate KL ≥, nats", digits=1),
    "test.aggregate_kl_high": Metric("aggregate KL ≤, nats", digits=1),
}
SPLITS = {"Test losses": "test", "Validation losses": "val", "Training losses of the last epoch": "train"}
QUALITY = {
    "Likelihood of the test images": (
        "test.elbo", "test.iwae_1", "test.iwae_10", "test.iwae_100", "test.bits_per_dim",
    ),
    "Reconstructions and samples": (
        "test.mse", "test.psnr", "test.ssim", "test.fid_reconstructions", "test.fid_samples",
    ),
    "Use of the latent space": (
        "test.probe_accuracy", "test.active_units", "test.dead_units", "test.mutual_information_low",
        "test.mutual_information_high", "test.aggregate_kl_low", "test.aggregate_kl_high",
    ),
}  # fmt: skip
"""Tables of test metrics beside the losses; `docs/numbers.md` says what each is."""

SAMPLERS = {
    "prior": "test.fid_samples",
    "Gaussian": "test.fid_samples_gaussian",
    "mixture": "test.fid_samples_mixture",
}
"""What samples are drawn from → their Fréchet distance."""

METRICS_OF_LOSS = tuple(name for name in METRICS if name.split(".")[-1] in ("total", "reconstruction", "kl"))
COST = tuple(name for name in METRICS if name.split(".")[0] in ("timing", "model", "memory"))


def metric(name: str) -> Metric:
    """How a figure is told, those that later versions add included."""
    return METRICS.get(name, Metric(name.replace("test.", "")))


class Entry(NamedTuple):
    """One place in a table: its text, what it is sorted by, and whether it is marked as the best."""

    text: str
    key: float | None = None
    best: bool = False


class Table(NamedTuple):
    """A table under its title; the first column names the rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""


# --- Figures as text ---------------------------------------------------------------------------------------


def decimals(reach: float) -> int:
    """Decimal places at which an interval of that half-width has one or two digits."""
    if reach <= 0 or not math.isfinite(reach):
        return 4
    leading = 10 ** (math.log10(reach) % 1)
    return max(0, -math.floor(math.log10(reach)) + (leading < 3))


def figure(name: str, cell: Cell | None) -> str:
    """A cell's mean, with the half-width of its interval where it has one."""
    told = metric(name)
    if cell is None or cell.mean is None:
        return MISSING
    mean = cell.mean * told.scale
    if cell.low is None or cell.high is None or cell.high == cell.low:
        return f"{mean:,.{told.digits}f}".replace("-", "−")
    reach = (cell.high - cell.low) / 2 * told.scale
    places = decimals(reach)
    return f"{mean:,.{places}f} ± {reach:,.{places}f}".replace("-", "−")


def interval(estimate: Pair | Effect, name: str = RECORD) -> str:
    """An interval as 'low to high'."""
    if estimate.low is None or estimate.high is None:
        return MISSING
    if estimate.low == estimate.high:
        return "no spread"
    scale = metric(name).scale
    places = decimals((estimate.high - estimate.low) / 2 * scale)
    return f"{estimate.low * scale:+,.{places}f} to {estimate.high * scale:+,.{places}f}".replace("-", "−")


def change(value: float | None, estimate: Pair | Effect | None = None, name: str = RECORD) -> str:
    """A signed difference, with the digits of its interval."""
    if value is None:
        return MISSING
    told = metric(name)
    places = told.digits + 1 if name.split(".")[0] in ("train", "val", "test") else told.digits
    if estimate is not None and estimate.low is not None and estimate.high is not None and estimate.high > estimate.low:
        places = decimals((estimate.high - estimate.low) / 2 * told.scale)
    text = f"{value * told.scale:+,.{places}f}".replace("-", "−")
    return text if text.strip("+−0.,") else text.lstrip("+−")  # no sign of what is rounded away


def probability(p: float | None) -> str:
    """A p-value."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- What the data supports --------------------------------------------------------------------------------


def ranked(name: str, comparison: Comparison) -> list[str]:
    """The cells from the best to the worst, over the seeds that all have; empty where neither way is better."""
    direction = better(name)
    if direction is None:
        return []
    present = [cell for cell, found in comparison.cells.items() if found.mean is not None]
    return sorted(present, key=lambda cell: comparison.level[cell] * (1 if direction == "lower" else -1))


def better_than(name: str, comparison: Comparison, cell: str, other: str) -> bool:
    """Whether a cell was shown to be better than another."""
    pair = comparison.pair(cell, other)
    if pair is None or not pair.different or pair.difference is None:
        return False
    return pair.difference < 0 if better(name) == "lower" else pair.difference > 0


def best(name: str, comparison: Comparison) -> str | None:
    """The cell that was shown to be better than every other cell that has the figure."""
    order = ranked(name, comparison)
    if len(order) < 2:
        return None
    first, *others = order
    return first if all(better_than(name, comparison, first, other) for other in others) else None


def sampled(study: Study) -> dict[str, list[Pair]]:
    """Cell → its Fréchet distances of samples, each less one that stands before it in `SAMPLERS`; a and b name the two.

    All three are of the same models, so runs are paired with themselves; p-values are corrected over all cells by
    Holm's method. Cells without the figures are left out.
    """
    found = []
    for a, b in ((later, earlier) for earlier, later in itertools.combinations(SAMPLERS, 2)):
        left, right = (study.values(SAMPLERS[name]) for name in (a, b))
        for cell in study.cells:
            differences = (left[cell] - right[cell]).to_numpy(dtype=float)
            one = estimate(differences, float(right[cell].abs().max()))
            if one.n:
                found.append((cell, a, b, one))
    adjusted = holm([one.p for *_, one in found])
    pairs: dict[str, list[Pair]] = {}
    for (cell, a, b, one), p in zip(found, adjusted, strict=True):
        different = p is not None and p < 1 - LEVEL
        pairs.setdefault(cell, []).append(Pair(a, b, one.n, one.mean, one.low, one.high, one.p, p, different))
    return pairs


# --- Tables ------------------------------------------------------------------------------------------------


def tables(study: Study, statistics: Mapping[str, Comparison]) -> list[Table]:
    """All tables of a report, in its order."""
    known = {name for names in (*QUALITY.values(), SAMPLERS.values()) for name in names}
    further = [name for name in study.metrics if name.startswith("test.") and name not in (*METRICS_OF_LOSS, *known)]
    found = [
        published(study, statistics),
        *(
            of_metrics(title, [name for name in METRICS_OF_LOSS if name.startswith(split)], study, statistics)
            for title, split in SPLITS.items()
        ),
        *(of_metrics(title, names, study, statistics) for title, names in QUALITY.items()),
        _samplers(study, statistics),
        of_metrics("Further test metrics", further, study, statistics),
        of_metrics("Cost", COST, study, statistics),
        _pairs(study, statistics),
        _effects(study, statistics, RECORD),
        _effects(study, statistics, "timing.train_seconds"),
    ]
    return [table for table in found if table is not None and table.rows and len(table.columns) > 2]


def of_metrics(title: str, names: Sequence[str], study: Study, statistics: Mapping[str, Comparison]) -> Table:
    names = [name for name in names if name in statistics]
    marked = {name: best(name, statistics[name]) for name in names}
    rows = []
    for cell in study.cells:
        runs = len(study.of(cell))
        row = [Entry(cell), Entry(str(runs), runs)]
        for name in names:
            found = statistics[name].cells.get(cell)
            row.append(Entry(figure(name, found), found.mean if found else None, marked[name] == cell))
        rows.append(tuple(row))
    several = len(study.seeds) > 1
    note = "Mean over the seeds ± half of its 95 % interval. " if several else ""
    if any(better(name) for name in names) and len(study.cells) > 1:
        note += (
            "The best value is marked where it differs from every other one (Holm's correction)."
            if several
            else "No value is marked: with one seed no difference can be called real."
        )
    return Table(title, ("encoder-decoder", "runs", *(metric(name).heading for name in names)), tuple(rows), note)


def published(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    """The published experiment's table, its figures beside ours; None where no cell is one of its four."""
    if not set(study.cells) & set(PUBLISHED):
        return None
    names = ("train.kl", "train.reconstruction", "train.total", "timing.train_seconds")
    rows = []
    for cell in study.cells:
        means = [statistics[name].cells[cell].mean if name in statistics else None for name in names]
        forms = (".4f", ".4f", ".4f", ".2f")
        ours = [
            Entry(MISSING if mean is None else f"{mean:{form}}", mean) for mean, form in zip(means, forms, strict=True)
        ]
        theirs = [
            Entry(f"{value:{form}}", value) for value, form in zip(PUBLISHED.get(cell, ()), forms, strict=False)
        ] or [Entry("")] * 4
        rows.append((Entry(cell), *ours, *theirs))
    columns = ("KL", "reconstruction", "total", "time, s")
    return Table(
        "Beside the published figures",
        ("encoder-decoder", *columns, *(f"published {name}" for name in columns)),
        tuple(rows),
        "Training losses of the last epoch" + (", means over the seeds" if len(study.seeds) > 1 else "") + "; the "
        "published models were trained once each, on hardware that was not stated, so the times do not compare.",
    )


def _samplers(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    pairs = sampled(study)
    if not pairs:
        return None
    couples = list(dict.fromkeys((pair.a, pair.b) for own in pairs.values() for pair in own))
    rows = []
    for cell in study.cells:
        row = [Entry(cell), Entry(str(len(study.of(cell))), len(study.of(cell)))]
        for name in SAMPLERS.values():
            mean = statistics[name].cells[cell] if name in statistics else None
            row.append(Entry(figure(name, mean), mean.mean if mean else None))
        own = {(pair.a, pair.b): pair for pair in pairs.get(cell, [])}
        row += [_difference(own.get(couple)) for couple in couples]
        rows.append(tuple(row))
    note = (
        "Fréchet distances from the test images of samples of the prior, and of a Gaussian with full covariance and a "
        "mixture of Gaussians that were fitted to the training codes; the smaller the better."
    )
    if any(pair.n > 1 for own in pairs.values() for pair in own):
        note += (
            " Differences are within a model, the mean over the seeds with its 95 % interval; one is marked where the "
            "first of the two was shown to be better (Holm's correction)."
        )
    columns = ("encoder-decoder", "runs", *SAMPLERS, *(f"{a} − {b}" for a, b in couples))
    return Table("What samples are drawn from", columns, tuple(rows), note)


def _difference(pair: Pair | None) -> Entry:
    if pair is None or pair.difference is None:
        return Entry(MISSING)
    text = change(pair.difference, pair, SAMPLERS[pair.a])
    text += "" if pair.low is None else f" ({interval(pair, SAMPLERS[pair.a])})"
    return Entry(text, pair.difference, pair.different and pair.difference < 0)


def _pairs(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    if RECORD not in statistics:
        return None
    rows = tuple(
        (
            Entry(f"{pair.a} − {pair.b}"),
            Entry(str(pair.n), pair.n),
            Entry(change(pair.difference, pair), pair.difference),
            Entry(interval(pair), pair.low),
            Entry(probability(pair.p), pair.p),
            Entry(probability(pair.p_adjusted), pair.p_adjusted),
            Entry("yes" if pair.different else "not shown", float(pair.different)),
        )
        for pair in statistics[RECORD].pairs
        if pair.difference is not None
    )
    columns = ("pair", "seeds", "difference", "95 % interval", "p", "p adjusted", "different")
    return Table(
        "Pairs by test total",
        columns,
        rows,
        "Runs are paired by seed; p adjusted is Holm's over all pairs, and 'different' is p adjusted < 0.05."
        + (f" Pairs are taken against {study.cells[0]} only." if len(study.cells) > MOST_CELLS else ""),
    )


def _effects(study: Study, statistics: Mapping[str, Comparison], name: str) -> Table | None:
    if name not in statistics or not statistics[name].effects:
        return None
    rows = tuple(
        (
            Entry(effect.factor),
            Entry(f"{effect.from_} → {effect.to}"),
            Entry(str(effect.n), effect.n),
            Entry(change(effect.effect, effect, name), effect.effect),
            Entry(interval(effect, name), effect.low),
            Entry(probability(effect.p), effect.p),
        )
        for effect in statistics[name].effects
        if effect.effect is not None
    )
    note = (
        "Of one factor: the mean over the levels of all others. Of two, a:b: by how much the effect of a is another "
        "at the second level of b."
    )
    if len(rows) < len(statistics[name].effects):
        note += " The others cannot be had: the runs do not make a complete grid under the same conditions."
    columns = ("factor", "from → to", "seeds", "effect", "95 % interval", "p")
    return Table(f"Effects on {metric(name).heading}", columns, rows, note)


def sentence_list(words: Sequence[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
