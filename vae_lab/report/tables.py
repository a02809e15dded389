"""The tables of a study, independent of the kind of page, and the format of their numbers."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from vae_lab.results import figures
from vae_lab.study.beyond_images import beyond_images
from vae_lab.study.contrasts import LEVEL, estimate, holm, sd_interval
from vae_lab.study.gather import TOTAL, VARY, Study, sources_of
from vae_lab.study.published import beside
from vae_lab.study.rate_distortion import PERCENT, rate_distortion
from vae_lab.study.statistics import MOST_CELLS, Cell, Comparison, Effect, Pair

MISSING = "—"
_TESTS = "p adjusted and intervals hold for all pairs and effects at once; docs/report.md has the tests."
MORE_DIGITS = 3
"""The most digits that a figure has beyond its own, however narrow its interval is."""


SPLITS = {"Test losses": "test", "Validation losses": "val", "Training losses of the last epoch": "train"}

SAMPLERS = {
    "prior": "test.fid_samples",
    "Gaussian": "test.fid_samples_gaussian",
    "mixture": "test.fid_samples_mixture",
}
"""Distribution of the samples → their Fréchet distance."""

Named = str | figures.Figure
"""The description of a figure, or its name in the catalogue."""


def row_of(name: Named) -> figures.Figure:
    """The description of a figure."""
    return figures.find(name) if isinstance(name, str) else name


class Entry(NamedTuple):
    """One cell of a table: its text, its sort key, and whether it is marked as the best."""

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
    """The number of decimals that shows this half-width of an interval with one or two significant digits."""
    if reach <= 0 or not math.isfinite(reach):
        return 4
    leading = 10 ** (math.log10(reach) % 1)
    return max(0, -math.floor(math.log10(reach)) + (leading < 3))


def figure(name: Named, cell: Cell | None) -> str:
    """A cell's mean, with the half-width of its interval if there is one that shows in its digits."""
    row = row_of(name)
    if cell is None or cell.mean is None:
        return MISSING
    mean = cell.mean * row.scale
    reach = 0.0 if cell.low is None or cell.high is None else (cell.high - cell.low) / 2 * row.scale
    places = min(decimals(reach), row.digits + MORE_DIGITS) if reach else 0
    if round(reach, places) == 0:
        return f"{mean:,.{row.digits}f}".replace("-", "−")
    return f"{mean:,.{places}f} ± {reach:,.{places}f}".replace("-", "−")


def deviation(row: figures.Figure, cell: Cell) -> str:
    """A cell's standard deviation over its seeds, with the digits that so many seeds support."""
    if cell.sd is None or cell.n < 2:
        return MISSING
    low, high = sd_interval(cell.sd, cell.n)
    return f"{cell.sd * row.scale:,.{decimals((high - low) / 4 * row.scale)}f}"


def interval(estimate: Pair | Effect, name: Named = TOTAL) -> str:
    """An interval as 'low to high'."""
    if estimate.low is None or estimate.high is None:
        return MISSING
    if estimate.low == estimate.high:
        return "no spread"
    scale = row_of(name).scale
    places = decimals((estimate.high - estimate.low) / 2 * scale)
    return f"{estimate.low * scale:+,.{places}f} to {estimate.high * scale:+,.{places}f}".replace("-", "−")


def change(value: float | None, estimate: Pair | Effect | None = None, name: Named = TOTAL) -> str:
    """A signed difference, with the digits of its interval."""
    if value is None:
        return MISSING
    row = row_of(name)
    places = row.digits + 1 if row.name.split(".")[0] in ("train", "val", "test") else row.digits
    if estimate is not None and estimate.low is not None and estimate.high is not None and estimate.high > estimate.low:
        places = decimals((estimate.high - estimate.low) / 2 * row.scale)
    text = f"{value * row.scale:+,.{places}f}".replace("-", "−")
    return text if text.strip("+−0.,") else text.lstrip("+−")  # a value that rounds to 0 has no sign


def probability(p: float | None) -> str:
    """A p-value."""
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- Ranking ----------------------------------------------------------------------------------------------


def ranked(name: Named, comparison: Comparison) -> list[str]:
    """The cells from best to worst by their means; empty if neither direction is better."""
    direction = row_of(name).better
    if direction is None:
        return []
    means = {cell: found.mean for cell, found in comparison.cells.items() if found.mean is not None}
    return sorted(means, key=lambda cell: means[cell] * (1 if direction == "lower" else -1))


def better_than(name: Named, comparison: Comparison, cell: str, other: str) -> bool:
    """Whether a cell is shown to be better than another."""
    pair = comparison.pair(cell, other)
    if pair is None or not pair.different or pair.difference is None:
        return False
    return pair.difference < 0 if row_of(name).better == "lower" else pair.difference > 0


def best(name: Named, comparison: Comparison) -> str | None:
    """The cell that is shown to be better than every other cell with this figure; None if there is none."""
    order = ranked(name, comparison)
    if len(order) < 2:
        return None
    first, *others = order
    return first if all(better_than(name, comparison, first, other) for other in others) else None


def sampled(study: Study) -> dict[str, list[Pair]]:
    """Cell → the differences between its Fréchet distances of samples: each of `SAMPLERS` (a) minus an earlier one (b).

    The distances are of the same models, so each run is paired with itself; p-values are corrected over all cells by
    Holm's method. Cells without these figures are left out.
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
    """All tables of a report, in order."""
    losses = {split: [f"{split}.{term}" for term in study.terms] for split in SPLITS.values()}
    known = {*losses["test"], *figures.CATALOGUE}
    further = [name for name in study.metrics if name.startswith("test.") and name not in known]
    found = [
        published(study, statistics),
        *(of_metrics(title, losses[split], study, statistics) for title, split in SPLITS.items()),
        *(of_metrics(title, figures.in_table(title), study, statistics) for title in figures.TABLES),
        _samplers(study, statistics),
        _sources_of_spread(study, statistics),
        of_metrics("Further test metrics", further, study, statistics),
        of_metrics(figures.COST, figures.in_table(figures.COST), study, statistics),
        _pairs(study, statistics),
        _test_images(study, statistics),
        _effects(study, statistics, study.record),
        _effects(study, statistics, "timing.train_seconds"),
        _curves(study),
    ]
    return [table for table in found if table is not None and table.rows and len(table.columns) > 2]


def of_metrics(title: str, names: Sequence[str], study: Study, statistics: Mapping[str, Comparison]) -> Table:
    rows_of = {name: study.figure(name) for name in names if name in statistics}
    marked = {name: best(row, statistics[name]) for name, row in rows_of.items()}
    rows = []
    for cell in study.cells:
        runs = len(study.of(cell))
        row = [Entry(study.label(cell)), Entry(str(runs), runs)]
        for name, described in rows_of.items():
            found = statistics[name].cells.get(cell)
            row.append(Entry(figure(described, found), found.mean if found else None, marked[name] == cell))
        rows.append(tuple(row))
    several = len(study.seeds) > 1
    note = "Mean over the seeds ± half of its 95 % interval. " if several else ""
    if any(row.better for row in rows_of.values()) and len(study.cells) > 1:
        note += _marking(study, names) if several else "No value is marked: with one seed no difference is known."
    headings = (described.label for described in rows_of.values())
    return Table(title, (cell_heading(study), "runs", *headings), tuple(rows), note)


def _marking(study: Study, names: Sequence[str]) -> str:
    """What the mark of a best value claims, and what it does not."""
    record, exploratory = study.record in names, any(name != study.record for name in names)
    tests = [
        *([f"of {study.figure(study.record).heading}, the metric of record, by its simultaneous tests"] * record),
        *(["of the exploratory others at a false discovery rate of 5 %" if record else
           "at a false discovery rate of 5 %, as these figures are exploratory"] * exploratory),
    ]  # fmt: skip
    own = " The interval of a best value does not allow for its having been chosen." if len(study.cells) > 2 else ""
    return f"The best value is marked where it differs from every other one: {'; '.join(tests)}.{own}"


def cell_heading(study: Study) -> str:
    """The heading of a column of labels of cells."""
    return "encoder-decoder" if study.varies_networks else "cell"


def published(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    """The published figures beside ours; None if there are none of these models."""
    found = beside(study, statistics)
    if not found:
        return None
    rows = []
    for row in found:
        described = study.figure(row.published.metric)
        value, spread = row.published.value, row.published.spread
        theirs = Cell(0, value, None, None, None)
        if spread:
            theirs = Cell(0, value, None, value - spread, value + spread)
        difference = None if row.ours is None or row.ours.mean is None else row.ours.mean - value
        rows.append(
            (
                Entry(study.label(row.cell)),
                Entry(described.label),
                Entry(figure(described, theirs), value),
                Entry(figure(described, row.ours), row.ours.mean if row.ours else None),
                Entry(change(difference, None, described), difference),
                Entry(row.verdict),
            )
        )
    sources = sentence_list(list(dict.fromkeys(row.source for row in found)))
    note = (
        f"Published: {sources}. The verdict follows from the interval of the difference, our 95 % interval and the "
        "published ± together: reproduced if all of it is within the stated tolerance, better or worse if all of it is "
        "on one side of zero, else not decided. One seed has no interval."
    )
    columns = (cell_heading(study), "figure", "published", "ours", "difference", "verdict")
    return Table("Beside the published figures", columns, tuple(rows), note)


def _samplers(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    pairs = sampled(study)
    if not pairs:
        return None
    couples = list(dict.fromkeys((pair.a, pair.b) for own in pairs.values() for pair in own))
    rows = []
    for cell in study.cells:
        row = [Entry(study.label(cell)), Entry(str(len(study.of(cell))), len(study.of(cell)))]
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
    columns = (cell_heading(study), "runs", *SAMPLERS, *(f"{a} − {b}" for a, b in couples))
    return Table("What samples are drawn from", columns, tuple(rows), note)


def _difference(pair: Pair | None) -> Entry:
    if pair is None or pair.difference is None:
        return Entry(MISSING)
    text = change(pair.difference, pair, SAMPLERS[pair.a])
    text += "" if pair.low is None else f" ({interval(pair, SAMPLERS[pair.a])})"
    return Entry(text, pair.difference, pair.different and pair.difference < 0)


def _pairs(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    name = study.record
    if name not in statistics:
        return None
    described = study.figure(name)
    rows = tuple(
        (
            Entry(f"{study.label(pair.a)} − {study.label(pair.b)}"),
            Entry(str(pair.n), pair.n),
            Entry(change(pair.difference, pair, described), pair.difference),
            Entry(interval(pair, described), pair.low),
            Entry(probability(pair.p), pair.p),
            Entry(probability(pair.p_adjusted), pair.p_adjusted),
            Entry("yes" if pair.different else "not shown", float(pair.different)),
        )
        for pair in statistics[name].pairs
        if pair.difference is not None
    )
    columns = ("pair", "seeds", "difference", "95 % interval", "p", "p adjusted", "different")
    return Table(
        f"Pairs by {described.label}",
        columns,
        rows,
        f"{_TESTS} 'Different' is p adjusted < 0.05."
        + (f" Pairs are taken against {study.label(study.cells[0])} only." if len(study.cells) > MOST_CELLS else ""),
    )


def _sources_of_spread(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    """The spread of the metric of record by what the seeds change; None unless the study sweeps that."""
    if VARY not in study.factors or study.record not in statistics:
        return None
    described = study.figure(study.record)
    spread = {name: cell for name, cell in statistics[study.record].cells.items() if cell.sd}
    rows = []
    for name, cell in spread.items():
        assert cell.sd is not None
        alike = [one for one in spread if study.label(one, VARY) == study.label(name, VARY)]
        whole = max(alike, key=lambda one: len(sources_of(study.conditions[one][VARY])))
        own, all_of_them = (set(sources_of(study.conditions[one][VARY])) for one in (name, whole))
        share = cell.sd**2 / (spread[whole].sd or math.nan) ** 2 if own < all_of_them else None
        low, high = sd_interval(cell.sd, cell.n)
        ends = " to ".join(deviation(described, replace(cell, sd=end)) for end in (low, high))
        rows.append((
            Entry(study.label(name)),
            Entry(", ".join(sources_of(study.conditions[name][VARY]))),
            Entry(str(cell.n), cell.n),
            Entry(deviation(described, cell), cell.sd),
            Entry(ends, low),
            Entry(MISSING if share is None else f"{100 * share:.0f} %", share),
        ))  # fmt: skip
    note = (
        "Standard deviation over the seeds with its 95 % interval (χ², for normal noise). The share is its square over "
        "that of the cell whose seeds change these sources and more. Shares are as uncertain as the deviations, and "
        "need not add up to 100 %: sources interact."
    )
    columns = (cell_heading(study), "a seed changes", "seeds", f"sd of {described.label}", "95 % interval", "share")
    return Table("What the spread of the seeds comes from", columns, tuple(rows), note)


def _test_images(study: Study, statistics: Mapping[str, Comparison]) -> Table | None:
    """Cells, and differences from the best one, with intervals for these test images and for others too."""
    name = study.record
    if name not in statistics:
        return None
    best_first = ranked(study.figure(name), statistics[name])
    found = beyond_images(study, name, best_first[0] if best_first else None)
    if found is None:
        return None
    described = study.figure(name)
    rows = []
    for cell, both in found.cells.items():
        own = statistics[name].cells[cell], Cell(both.seeds, both.mean, None, both.low, both.high)
        entries = (Entry(figure(described, one), one.mean) for one in own)
        rows.append((Entry(study.label(cell)), *entries))
    for one in found.differences:
        seeds, both = one.of_seeds, one.of_both
        rows.append((
            Entry(f"{study.label(one.a)} − {study.label(one.b)}"),
            Entry(_reaching(described, seeds.mean, seeds.low, seeds.high), seeds.mean),
            Entry(_reaching(described, seeds.mean, both.low, both.high), seeds.mean),
        ))  # fmt: skip
    both = next(iter(found.cells.values()))
    several = max(one.seeds for one in found.cells.values()) > 1
    note = (
        f"The tests above are about these {both.images:,} test images. The last column has the 95 % interval, each by "
        f"itself, for other {'seeds and other ' * several}images of the same kind"
        f"{': seeds and images as crossed random effects' * several}."
    )
    columns = (
        cell_heading(study),
        f"{described.label}{', over seeds' * several}",
        "over seeds and test images" if several else "over test images, with this seed",
    )
    return Table("For other test images", columns, tuple(rows), note)


def _reaching(row: figures.Figure, mean: float | None, low: float | None, high: float | None) -> str:
    pair = Pair("", "", 0, mean, low, high, None, None, different=False)
    return change(mean, pair, row) + ("" if low is None else f" ({interval(pair, row)})")


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
            Entry(probability(effect.p_adjusted), effect.p_adjusted),
            Entry("yes" if effect.different else "not shown", float(effect.different)),
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
    if name == study.record:
        note += f" {_TESTS} 'Shown' is p adjusted < 0.05."
    else:
        note += (
            " Exploratory: p adjusted is over this figure alone, 'shown' is p adjusted < 0.05 and a false discovery "
            "rate over all such figures below 5 %."
        )
    columns = ("factor", "from → to", "seeds", "effect", "95 % interval", "p", "p adjusted", "shown")
    return Table(f"Effects on {row_of(name).label}", columns, rows, note)


def _curves(study: Study) -> Table | None:
    """The differences of rate–distortion curves from the first."""
    found = rate_distortion(study)
    if found is None or not found.differences:
        return None
    rows = []
    for one in found.differences:
        pairs = ((one.distortion, found.difference), (one.rate, PERCENT))
        texts = [
            MISSING if pair.difference is None
            else change(pair.difference, pair, row) + ("" if pair.low is None else f" ({interval(pair, row)})")
            for pair, row in pairs
        ]  # fmt: skip
        marks = [pair.different and (pair.difference or 0) < 0 for pair, _ in pairs]
        shared = MISSING if one.rates is None else f"{one.rates[0]:.1f} to {one.rates[1]:.1f}"
        rows.append((
            Entry(f"{one.distortion.a} − {one.distortion.b}"),
            Entry(str(one.distortion.n), one.distortion.n),
            *(Entry(text, pair.difference, mark) for text, (pair, _), mark in zip(texts, pairs, marks, strict=True)),
            Entry(shared, None if one.rates is None else one.rates[0]),
        ))  # fmt: skip
    note = (
        "Bjøntegaard differences: the mean distance of two curves over the logarithm of the rates that both have, or "
        "over the distortions that both have, between points joined by PCHIP; per seed, then the mean with its 95 % "
        "interval. Negative is better; marked where it is shown (Holm's correction)."
    )
    missing = [f"{one.distortion.a}: {one.reason}" for one in found.differences if one.reason]
    note += f" Missing: {'; '.join(missing)}." if missing else ""
    unit = found.difference.unit
    columns = ("architectures", "seeds", f"distortion at equal rate, {unit}", "rate at equal distortion, %",
               "common rates, nats")  # fmt: skip
    return Table("Rate and distortion", columns, tuple(rows), note)


def sentence_list(words: Sequence[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
