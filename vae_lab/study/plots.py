"""The figures of a study. Imports no torch."""

import functools
import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from vae_lab.config.text import one_line, visible
from vae_lab.results import read_history, read_pictures
from vae_lab.study.gather import SIDES, TOTAL, Record, Study, is_number
from vae_lab.study.rate_distortion import BETA, rate_distortion
from vae_lab.study.statistics import MOST_CELLS, Comparison

# Okabe & Ito's colours, which are distinguishable for all kinds of colour vision, then darker ones.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F", "#9467BD", "#BCBD22",
)  # fmt: skip
DASHES = ("-", "--", "-.", ":")
INK, PAPER, GRID = "#24292f", "#fffffe", "#8c959f"
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "vae_lab",
    "text.parse_math": False,  # names may contain a $
}
MOST_PANELS = 6
PLOTTED = (
    "train.total", "val.total", "test.total", "test.reconstruction", "test.kl", "timing.train_seconds",
    "timing.images_per_second", "model.parameters", "model.flops_per_image", "memory.peak_bytes",
)  # fmt: skip
"""Figures of the heatmap, in addition to all test metrics."""
SHOWN_IMAGES = 10
MOST_ROWS = 24
LARGEST_SIDE = 100
"""Of a figure, in inches: 12,000 pixels."""
MOST_POINTS = 1000
"""Points of a curve, and pixels of a picture's side; of more, every second, third, … is drawn."""


class Drawing(NamedTuple):
    """A figure, its caption and the name of its files."""

    name: str
    caption: str
    figure: Figure


def render(drawing: Drawing) -> tuple[bytes, str]:
    """A figure as PNG and as SVG.

    Raises:
        ValueError: if it is too large.
    """
    if max(drawing.figure.get_size_inches()) > LARGEST_SIDE:
        raise ValueError(f"{drawing.name} would be more than {LARGEST_SIDE} inches long")
    png, svg = io.BytesIO(), io.StringIO()
    with matplotlib.rc_context(STYLE):
        drawing.figure.savefig(png, format="png", dpi=120)
        drawing.figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), visible(svg.getvalue(), keep="\n")  # XML has no control characters


def drawings(
    study: Study, statistics: Mapping[str, Comparison], cells: Sequence[str], *, is_grid: bool = True
) -> Iterator[Callable[[], Drawing | None]]:
    """Functions that draw the figures of a study; one returns None if the runs lack the files for it.

    Args:
        study: the runs.
        statistics: the comparison of each metric.
        cells: the cells that get their own figures and a row in the pictures.
        is_grid: whether the levels of the factors were crossed. In a search, cells rarely share a level.
    """
    studio = _Studio(study, statistics, cells)
    draw: list[Callable[[], Drawing | None]] = [
        studio.comparison,
        studio.predictions,
        studio.samples,
        studio.cost,
        studio.rate_distortion,
        *([studio.heatmap] if is_grid else []),
    ]
    for factor, levels in study.factors.items():
        # Totals under different β are different quantities.
        if is_grid and factor not in (*SIDES, BETA) and all(map(is_number, levels)):
            draw.append(functools.partial(studio.by_factor, factor))
    for cell in cells:
        draw += [functools.partial(studio.history, cell), functools.partial(studio.cell_predictions, cell)]
    for one in draw:
        yield functools.partial(styled, one)


def styled(draw: Callable[[], Drawing | None]) -> Drawing | None:
    """Draw a figure in the common style."""
    with matplotlib.rc_context(STYLE):
        return draw()


def file_name(text: str) -> str:
    """A text as part of a file name; a long one is shortened and gets a checksum."""
    name = re.sub(r"[^\w.+@-]", "-", text)
    return name if len(name.encode()) <= 150 else f"{name[:60]}__{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class _Studio:
    """The figures of one study; they share colours, histories and pictures."""

    def __init__(self, study: Study, statistics: Mapping[str, Comparison], cells: Sequence[str]) -> None:
        self.study = study
        self.statistics = statistics
        self.cells = cells
        styles = itertools.cycle(itertools.product(DASHES, COLOURS))
        self.styles = dict(zip(cells, styles, strict=False))
        # matplotlib hides labels that begin with an underscore from a legend.
        self.labels = {cell: re.sub("^_", " _", one_line(study.label(cell))) for cell in study.cells}
        self.histories = {
            cell: [history for record in study.of(cell) if (history := read_history(record.folder))]
            for cell in study.cells
        }
        found = {cell: _first_pictures(study.of(cell)) for cell in cells}
        self.pictures = {cell: pictures for cell, (pictures, _) in found.items()}
        self.seeds = {cell: seed for cell, (_, seed) in found.items()}

    def _losses(self, cells: Sequence[str]) -> list[tuple[str, str]]:
        """The terms that all histories of these cells have, with their titles: total, KL and reconstruction first."""
        shared = [
            {column for split in history.values() for column in split} - {"epoch", "seconds"}
            for cell in cells
            for history in self.histories[cell]
        ]
        common = set.intersection(*shared) if shared else set()
        order = [term for term in ("total", "kl", "reconstruction", *self.study.terms) if term in common]
        units = {record.result.terms.get("kl") for cell in cells for record in self.study.of(cell)}
        titles = {"kl": f"KL, {units.pop()}" if len(units) == 1 else "KL"}
        return [(term, titles.get(term, term)) for term in dict.fromkeys(order)][:MOST_PANELS]

    # --- Losses by epoch ---------------------------------------------------------------------------------------

    def history(self, cell: str) -> Drawing | None:
        """The losses of one cell by epoch, for training and validation."""
        histories = self.histories[cell]
        if not histories:
            return None
        losses = self._losses([cell])
        figure, panels = _panels(len(losses), above=0.65)
        _, colour = self.styles[cell]
        for axes, (term, name) in zip(panels, losses, strict=True):
            for split, dash in (("train", "-"), ("val", "--")):
                _line(axes, histories, split, term, colour=colour, dash=dash, label=split)
            _by_epoch(axes, name)
        _legend(figure, panels[0])
        figure.suptitle(f"{self.labels[cell]}{_over_seeds(len(histories))}")
        return Drawing(f"{file_name(cell)}_history", f"Losses of {self.labels[cell]} by epoch", figure)

    def comparison(self) -> Drawing | None:
        """The losses of all cells by epoch, in the same panels."""
        present = [cell for cell in self.study.cells if self.histories[cell]]
        if not present:
            return None
        validated = any("val" in history for cell in present for history in self.histories[cell])
        split, split_name = ("val", "validation") if validated else ("train", "training")
        losses = self._losses(present)
        figure, panels = _panels(len(losses))
        for axes, (term, name) in zip(panels, losses, strict=True):
            others = [history for cell in present if cell not in self.styles for history in self.histories[cell][:1]]
            lines = [np.column_stack([one[split]["epoch"], one[split][term]]) for one in others if split in one]
            axes.add_collection(LineCollection(lines, colors=GRID, linewidths=0.8, alpha=0.5))
            for cell in present:
                if cell in self.styles:
                    dash, colour = self.styles[cell]
                    band = len(present) <= 6
                    _line(axes, self.histories[cell], split, term, colour, dash, self.labels[cell], band=band)
            _by_epoch(axes, f"{split_name} {name}")
        _legend(figure, panels[0])
        return Drawing("comparison", f"All cells: {split_name} losses by epoch", figure)

    # --- Images ------------------------------------------------------------------------------------------------

    def predictions(self) -> Drawing | None:
        """Test images above their reconstructions by each cell."""
        return self._rows("predictions", "reconstructions", "Test images and what each cell makes of them", "original")

    def samples(self) -> Drawing | None:
        """Samples of the prior, with the same z for all cells with equally many latent dimensions."""
        sizes = {record.config.get("latent.dim") for cell in self.cells for record in self.study.of(cell)}
        of_equal_size = "" if len(sizes) == 1 else " of as many latent dimensions"
        return self._rows("samples", "samples", f"Samples of the prior, the same z for each cell{of_equal_size}")

    def _rows(self, name: str, kind: str, caption: str, above: str | None = None) -> Drawing | None:
        shown = [cell for cell in self.cells if kind in self.pictures[cell]]
        rows: list[tuple[str, np.ndarray]] = []
        if above is not None and shown and "originals" in self.pictures[shown[0]]:
            first = self.pictures[shown[0]]["originals"]
            # Only one row of originals is shown, so leave out cells with other originals.
            shown = [cell for cell in shown if np.array_equal(self.pictures[cell].get("originals", first), first)]
            rows.append((above, first))
        rows += [(self.labels[cell], self.pictures[cell][kind]) for cell in shown]
        if not rows:
            return None
        seeds = {self.seeds[cell] for cell in shown}
        of_seed = f" (seed {seeds.pop()})" if len(seeds) == 1 else ""
        return Drawing(name, caption + of_seed, _image_rows(rows[:MOST_ROWS]))

    def cell_predictions(self, cell: str) -> Drawing | None:
        """Test images above their reconstructions by one cell."""
        pictures = self.pictures[cell]
        if not {"originals", "reconstructions"} <= set(pictures):
            return None
        rows = [("original", pictures["originals"]), ("reconstruction", pictures["reconstructions"])]
        figure = _image_rows(rows, f"{self.labels[cell]}, seed {self.seeds[cell]}")
        return Drawing(f"{file_name(cell)}_predictions", f"Test images and {self.labels[cell]}'s predictions", figure)

    # --- Figures of merit --------------------------------------------------------------------------------------

    def cost(self) -> Drawing | None:
        """The metric of record against training time and parameters, with the Pareto front."""
        record = self.study.record
        quality = self.statistics.get(record)
        if quality is None or len(self.study.cells) < 2:
            return None
        figure, panels = _panels(2, above=0.15)
        drawn = False
        for axes, metric in zip(panels, ("timing.train_seconds", "model.parameters"), strict=True):
            cost = self.statistics.get(metric)
            points = {}
            for cell in self.study.cells:
                x, y = (one.cells.get(cell) if one else None for one in (cost, quality))
                if x is None or y is None or x.mean is None or y.mean is None:
                    continue
                points[cell] = (x.mean, y.mean)
                if cell not in self.styles:
                    continue
                dash, colour = self.styles[cell]
                axes.errorbar(
                    *points[cell], xerr=_reach(x), yerr=_reach(y), color=colour, label=self.labels[cell],
                    marker="o^sD"[DASHES.index(dash)], markersize=7, capsize=3, elinewidth=1,
                )  # fmt: skip
            drawn = drawn or bool(points)
            if others := [point for cell, point in points.items() if cell not in self.styles]:
                costs, losses = zip(*others, strict=True)
                axes.scatter(costs, losses, color=GRID, s=12, zorder=1)
            if self.study.comparable(record) and self.study.comparable(metric):
                sign = -1 if self.study.figure(record).better == "higher" else 1
                front = pareto_front({cell: (x, sign * y) for cell, (x, y) in points.items()})
                _front(axes, [(x, sign * y) for x, y in front], is_higher_better=sign < 0)
            axes.set(xlabel=self.study.figure(metric).label, ylabel=self.study.figure(record).label)
            if metric == "model.parameters":
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
                counts = [count for count, _ in points.values()]
                if counts and max(counts) - min(counts) < 0.01 * max(counts):  # which prefixes would not tell apart
                    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=metric == "model.parameters"))
        if not drawn:
            return None
        _legend(figure, panels[1])
        caption = "Quality against cost: 95 % intervals where there are several seeds, the grey line joins the cells "
        return Drawing("cost", f"{caption}that none beats in both", figure)

    def rate_distortion(self) -> Drawing | None:
        """The distortion of the test images against their rate over a sweep of β, one line per architecture."""
        found = rate_distortion(self.study)
        if found is None:
            return None
        figure, (axes,) = _panels(1, width=7, above=0.15, high=3.6)
        shown = list(found.curves.items())[:MOST_CELLS]
        styles = itertools.cycle(itertools.product(DASHES, COLOURS))
        highest = max(shown[:2], key=lambda one: sum(point.distortion.mean or 0.0 for point in one[1]))[0]
        for index, ((name, points), (dash, colour)) in enumerate(zip(shown, styles, strict=False)):
            rates = [point.rate.mean or 0.0 for point in points]
            distortions = [point.distortion.mean or 0.0 for point in points]
            axes.errorbar(
                rates, distortions, xerr=_reaches([point.rate for point in points]),
                yerr=_reaches([point.distortion for point in points]), label=re.sub("^_", " _", one_line(name)),
                color=colour, linestyle=dash, marker="os^D"[index % 4], capsize=3, elinewidth=1,
            )  # fmt: skip
            if index < 2:  # beside more lines the values of β would overlap
                side, across, down = (1, "left", "bottom") if name == highest else (-1, "right", "top")
                for point, rate, distortion in zip(points, rates, distortions, strict=True):
                    axes.annotate(
                        f"β {point.beta:g}", (rate, distortion), (6 * side, 6 * side), textcoords="offset points",
                        fontsize=8, color=colour, ha=across, va=down,
                    )  # fmt: skip
        axes.margins(0.12)
        if found.is_in_nats:
            axes.set_ylabel("test distortion −E log p(x | z), nats per image")
        else:
            through = "" if found.metric == "test.mse" else ", through a sample"
            axes.set_ylabel(f"test MSE per pixel{through}")
            _log_ticks(axes)
        axes.set_xlabel("test rate KL(q(z | x) ‖ p(z)), nats per image")
        _legend(figure, axes)
        caption = (
            "Rate against distortion at each β, 95 % intervals where there are several seeds: the lower left is best"
        )
        return Drawing("rate_distortion", caption, figure)

    def heatmap(self) -> Drawing | None:
        """Heatmaps of the grid's means, one panel per metric."""
        study, factors = self.study, list(self.study.factors.items())
        if not factors or len(set(study.levels.values())) < len(study.levels):
            return None
        first, *rest = factors
        columns = list(dict.fromkeys(study.levels[cell][1:] for cell in study.cells))
        chosen = [
            metric
            for metric in study.metrics
            if metric in PLOTTED or (metric.startswith("test.") and "[" not in metric)
        ]
        if not chosen or len(first[1]) * len(columns) > 400:
            return None
        across = min(len(chosen), max(1, 12 // max(3, len(columns))))
        down = math.ceil(len(chosen) / across)
        width = min(8.0, max(2.6, 0.75 * len(columns) + 1.4))
        height = min(5.0, max(1.7, 0.5 * len(first[1]) + 1.2))
        left, below = 0.5 + 0.08 * max(map(len, first[1])), 0.35 + 0.13 * len(rest)
        wide, high = left + across * width, down * height + below
        figure = Figure(figsize=(wide, high))
        panels = figure.subplots(down, across, squeeze=False)
        figure.subplots_adjust(left / wide, below / high, 1 - 0.1 / wide, 1 - 0.3 / high, 0.06, 0.6 / (height - 0.6))
        for axes in panels.flat[len(chosen) :]:
            axes.set_axis_off()
        for index, (axes, metric) in enumerate(zip(panels.flat, chosen, strict=False)):
            grid = np.full((len(first[1]), len(columns)), np.nan)
            for cell in study.cells:
                mean = self.statistics[metric].cells[cell].mean
                level, *others = study.levels[cell]
                if mean is not None:
                    grid[first[1].index(level), columns.index(tuple(others))] = mean * study.figure(metric).scale
            _heat(axes, grid)
            axes.set_title(study.figure(metric).label, fontsize=9)
            names = ["\n".join(column) for column in columns]
            _name_ticks(axes.xaxis, names)
            _name_ticks(axes.yaxis, first[1] if index % across == 0 else [""] * len(first[1]))
            if index % across == 0:
                axes.set_ylabel(first[0], fontsize=8)
            if rest and index // across == down - 1:
                axes.set_xlabel(", ".join(factor for factor, _ in rest), fontsize=8)
        return Drawing("heatmap", "Each metric over the grid, means over the seeds", figure)

    def by_factor(self, factor: str) -> Drawing:
        """The metric of record against the levels of a swept number, one line per combination of the other factors."""
        study, quality = self.study, self.statistics.get(TOTAL)
        axis = list(study.factors).index(factor)
        lines: dict[str, list[tuple[float, Any]]] = {}
        for cell in study.cells:
            other = [level for index, level in enumerate(study.levels[cell]) if index != axis]
            found = quality.cells.get(cell) if quality else None
            if found is not None and found.mean is not None:
                lines.setdefault("-".join(other) or study.label(cell), []).append(
                    (float(study.levels[cell][axis]), found)
                )
        figure, panels = _panels(1, width=6, above=0.15)
        styles = itertools.cycle(itertools.product(DASHES, COLOURS))
        for (label, points), (dash, colour) in zip(lines.items(), styles, strict=False):
            points.sort(key=lambda point: point[0])
            places, cells = zip(*points, strict=True)
            means = [cell.mean for cell in cells]
            panels[0].errorbar(
                places, means, yerr=_reaches(cells), label=label, color=colour, linestyle=dash, marker="o", capsize=3
            )
        levels = sorted({float(level) for level in study.factors[factor]})
        if levels[0] > 0 and levels[-1] / levels[0] >= 4:
            panels[0].set_xscale("log")
            panels[0].minorticks_off()
        panels[0].set_xticks(levels, [f"{level:g}" for level in levels])
        panels[0].set(xlabel=factor, ylabel=study.figure(TOTAL).label)
        _legend(figure, panels[0])
        return Drawing(f"by_{file_name(factor)}", f"{study.figure(TOTAL).label.capitalize()} by {factor}", figure)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, loss) that no other point beats in both, sorted by cost."""
    front: list[tuple[float, float]] = []
    for cost, loss in sorted(points.values()):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return front


def _front(axes: Axes, front: Sequence[tuple[float, float]], *, is_higher_better: bool) -> None:
    axes.margins(0.15)
    axes.autoscale_view()
    (_, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if front:
        costs = [front[0][0], *(cost for cost, _ in front), right]
        losses = [bottom if is_higher_better else top, *(loss for _, loss in front), front[-1][1]]
        axes.plot(costs, losses, color=GRID, zorder=1, drawstyle="steps-post")
        axes.set(xlim=(axes.get_xlim()[0], right), ylim=(bottom, top))


def _panels(count: int, width: float = 10, above: float = 0.35, high: float = 2.4) -> tuple[Figure, list[Axes]]:
    """Panels side by side, with room for a legend of one row. Manual layout is fast."""
    height = above + high + 0.95
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(1, count, squeeze=False)[0]
    left = 0.95 if count < 3 else 0.72
    figure.subplots_adjust(
        left / width, 0.95 / height, 1 - 0.15 / width, 1 - above / height, wspace=0.25 if count > 2 else 0.22
    )
    return figure, list(panels)


def _legend(figure: Figure, axes: Axes) -> None:
    """Put a legend below the panels; the figure grows with its rows."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    width, height = figure.get_size_inches()
    columns = max(1, min(len(labels), int(width / (0.6 + 0.085 * max(map(len, labels))))))
    extra = 0.22 * (math.ceil(len(labels) / columns) - 1)
    if extra:
        bottom, top = figure.subplotpars.bottom * height, figure.subplotpars.top * height
        figure.set_size_inches(width, height + extra)
        figure.subplots_adjust(bottom=(bottom + extra) / (height + extra), top=(top + extra) / (height + extra))
    figure.legend(handles, labels, loc="lower center", ncols=columns, borderaxespad=0.3)


def _over_seeds(count: int) -> str:
    return f": mean of {count} seeds, band from lowest to highest" if count > 1 else ""


def _line(
    axes: Axes,
    histories: Sequence[Mapping[str, Mapping[str, Sequence[float]]]],
    split: str,
    term: str,
    colour: str,
    dash: str,
    label: str,
    *,
    band: bool = True,
) -> None:
    columns = [history[split] for history in histories if split in history]
    if not columns:
        return
    length = min(len(column["epoch"]) for column in columns)
    chosen = slice(None, length, -(-length // MOST_POINTS) or 1)
    values = np.array([column[term][chosen] for column in columns])
    epochs = columns[0]["epoch"][chosen]
    marker = "o" if length == 1 else None
    axes.plot(epochs, values.mean(axis=0), color=colour, linestyle=dash, marker=marker, label=label, linewidth=1.6)
    if band and len(values) > 1:
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, linewidth=0)


def _by_epoch(axes: Axes, name: str) -> None:
    axes.set(xlabel="epoch", title=name)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    lines = [value for line in axes.get_lines() for value in np.asarray(line.get_ydata(), dtype=float)]
    # The first loss is often many times the last: a linear scale would flatten all the others.
    if lines and min(lines) > 0 and max(lines) / min(lines) > 3:
        _log_ticks(axes)


def _log_ticks(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _first_pictures(records: Sequence[Record]) -> tuple[dict[str, np.ndarray], int | None]:
    """The pictures of the first seed that has pictures, and that seed."""
    for record in records:
        if pictures := read_pictures(record.folder):
            return {name: _thinned(images) for name, images in pictures.items()}, record.result.seed
    return {}, None


def _thinned(images: np.ndarray) -> np.ndarray:
    """The images that are shown, with fewer pixels where a figure could not show them."""
    step = -(-max(images.shape[2:]) // MOST_POINTS)
    return images[:SHOWN_IMAGES, :, ::step, ::step].copy()


def _image_rows(rows: Sequence[tuple[str, np.ndarray]], title: str = "") -> Figure:
    """Rows of images with their names: name → (n, c, h, w), one byte per channel of a pixel."""
    strips = [(name, _strip(images[:SHOWN_IMAGES])) for name, images in rows]
    columns = max(strip.shape[1] / strip.shape[0] for _, strip in strips)
    margin = 0.2 + 0.085 * max(len(line) for name, _ in rows for line in name.split(", "))
    above = 0.4 if title else 0.05
    width, height = 0.72 * columns + margin, 0.76 * len(rows) + above + 0.05
    figure = Figure(figsize=(width, height))
    grid = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    figure.subplots_adjust(margin / width, 0.05 / height, 0.99, 1 - above / height, hspace=0.04)
    if title:
        figure.suptitle(title, y=1 - 0.08 / height, va="top")
    for (name, strip), axes in zip(strips, grid, strict=True):
        axes.set_axis_off()
        axes.imshow(strip, interpolation="nearest")
        axes.text(
            -0.01, 0.5, "\n".join(name.split(", ")), transform=axes.transAxes, ha="right", va="center", fontsize=9
        )
    return figure


def _strip(images: np.ndarray) -> np.ndarray:
    """(n, c, h, w) → (h, n·(w + gap), 4): images side by side, with transparent gaps."""
    colour = images[:, :3] if images.shape[1] >= 3 else images[:, [0, 0, 0]]
    opaque = np.full_like(colour[:, :1], 255)
    gap = max(1, images.shape[-1] // 14)
    tiles = np.pad(np.concatenate([colour, opaque], axis=1), ((0, 0), (0, 0), (0, 0), (0, gap)))
    return np.concatenate(list(np.moveaxis(tiles, 1, -1)), axis=1)


def _reach(cell: Any) -> list[list[float]] | None:
    """An interval in the form of matplotlib's error bars."""
    if cell.low is None or cell.mean is None:
        return None
    return [[cell.mean - cell.low], [cell.high - cell.mean]]


def _reaches(cells: Sequence[Any]) -> np.ndarray:
    """The intervals of several cells: (2, n), 0 where there is none."""
    return np.array([(_reach(cell) or [[0], [0]]) for cell in cells]).reshape(len(cells), 2).T


def _name_ticks(axis: Axis, names: Sequence[str]) -> None:
    axis.set_ticks(range(len(names)) if len(names) <= MOST_ROWS else [])
    if len(names) <= MOST_ROWS:
        axis.set_ticklabels(names, fontsize=8)


def _heat(axes: Axes, grid: np.ndarray) -> None:
    present = grid[np.isfinite(grid)]
    if len(present):
        # Values within a few percent of each other should look alike.
        middle, half = (present.max() + present.min()) / 2, (present.max() - present.min()) / 2
        half = max(half, 0.025 * abs(middle)) or 1.0
        axes.imshow(grid, cmap="cividis", aspect="auto", vmin=middle - half, vmax=middle + half)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if grid.size > 100 or not len(present):
        return
    for (row, column), value in np.ndenumerate(grid):
        text = "—" if np.isnan(value) else short(value)
        dark = np.isnan(value) or value > middle
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="#000000" if dark else "#ffffff")


def short(value: float) -> str:
    """Format a figure in few characters: 0.01523, 7.352, 1.22 M."""
    size = abs(value)
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if size >= limit:
            return f"{value / limit if unit != ' k' else value / 1e3:.3g}{unit}"
    return f"{value:.5f}" if 0 < size < 0.1 else f"{value:.4f}" if size < 1 else f"{value:.4g}"
