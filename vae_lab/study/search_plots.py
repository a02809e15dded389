"""The figures of a search: which key matters, the loss by trial, and where in the space it is low."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vae_lab.results.trials import Choice, Trials, bare
from vae_lab.study.budgets import Budget
from vae_lab.study.plots import COLOURS, GRID, INK, Drawing, file_name, styled

ACROSS = 3
"""Panels per row."""


def drawings(
    record: Trials, name: str, importances: Callable[[], Mapping[str, float]]
) -> Iterator[Callable[[], Drawing | None]]:
    """Functions that draw the figures of a search; one returns None if too few trials have finished.

    Args:
        record: its trials.
        name: the search's name, which becomes part of the file names.
        importances: returns the importance of each key.
    """
    for kind, draw in (("importance", partial(importance, importances)), ("history", history), ("keys", keys)):
        yield partial(styled, partial(_named, draw, record, f"search_{file_name(name)}_{kind}"))


def _named(draw: Callable[[Trials], tuple[str, Figure] | None], record: Trials, name: str) -> Drawing | None:
    drawn = draw(record)
    return Drawing(name, *drawn) if drawn else None


def importance(importances: Callable[[], Mapping[str, float]], record: Trials) -> tuple[str, Figure] | None:
    """The keys by the fraction of the variance that they explain."""
    parts = sorted(importances().items(), key=lambda part: part[1])
    if not parts:
        return None
    labels, values = zip(*parts, strict=True)
    high, left = 0.95 + 0.34 * len(parts), 0.3 + 0.085 * max(map(len, labels))
    figure = Figure(figsize=(7, high))
    axes = figure.subplots()
    figure.subplots_adjust(left / 7, 0.65 / high, 0.93, 1 - 0.1 / high)
    axes.barh(labels, values, color=COLOURS[0], height=0.6)
    for row, value in enumerate(values):
        axes.text(value + 0.008 * max(values), row, f"{100 * value:.0f} %", va="center", fontsize=9)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel=f"part of the variance of {record.metric}", xlim=(0, 1.12 * max(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    caption = (
        f"Which key matters to {record.metric}: the part of its variance over the space that each accounts for alone"
    )
    return f"{caption} (fANOVA over {len(record.finished)} finished trials)", figure


def history(record: Trials) -> tuple[str, Figure] | None:
    """The metric of each trial, and the best so far."""
    found = [(trial.number, record.shown(trial)) for trial in record.trials if trial.loss is not None]
    if not found:
        return None
    numbers, values = map(np.array, zip(*found, strict=True))
    best = np.minimum.accumulate(values) if record.is_lower_better else np.maximum.accumulate(values)
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    figure.subplots_adjust(0.13, 0.17, 0.97, 0.86)
    axes.plot(numbers, values, "o", color=COLOURS[5], markersize=5, label="trial")
    ends = np.append(numbers, max(len(record.trials) - 1, numbers[-1]))
    axes.plot(ends, np.append(best, best[-1]), color=COLOURS[1], drawstyle="steps-post", label="best so far")
    failed = [trial.number for trial in record.trials if trial.state == "failed"]
    if failed:
        high = axes.get_ylim()[1]
        axes.plot(failed, [high] * len(failed), "x", color=INK, label="failed", clip_on=False)
    _scaled(axes, values)
    axes.set(xlabel="trial", ylabel=record.metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.02, 0.98))
    return f"The search by trial: {record.metric}, and the {record.goal} so far", figure


def keys(record: Trials) -> tuple[str, Figure] | None:
    """The metric of each trial against each key."""
    found = [trial for trial in record.trials if trial.loss is not None]
    if len(found) < 2:
        return None
    across = min(ACROSS, len(record.space))
    down = math.ceil(len(record.space) / across)
    wide, high = 0.85 + 3.1 * across, 0.2 + 2.75 * down
    figure = Figure(figsize=(wide, high))
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    figure.subplots_adjust(0.85 / wide, 0.6 / high, 1 - 0.55 / wide, 1 - 0.15 / high, wspace=0.1, hspace=0.32)
    values = np.array([record.shown(trial) for trial in found])
    numbers = [trial.number for trial in found]
    for index, axes in enumerate(panels.flat):
        if index >= len(record.space):
            axes.set_axis_off()
            continue
        key, parameter = [*record.space.items()][index]
        at = [trial.values[key] for trial in found]
        if isinstance(parameter, Choice):
            positions = [float(parameter.choices.index(str(value))) for value in at]
            axes.set_xticks(range(len(parameter.choices)), parameter.choices)
            if sum(map(len, parameter.choices)) > 24:
                axes.tick_params(axis="x", labelrotation=30, labelsize=8)
            axes.set_xlim(-0.5, len(parameter.choices) - 0.5)
        else:
            positions = [float(value) for value in at]
            if parameter.log:
                axes.set_xscale("log")
                few = parameter.high / parameter.low < 30
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=parameter.whole))
        points = axes.scatter(positions, values, c=numbers, cmap="viridis_r", s=22)
        _scaled(axes, values)
        axes.set_xlabel(bare(key))
        if index % across == 0:
            axes.set_ylabel(record.metric)
    bar = figure.colorbar(points, cax=figure.add_axes((1 - 0.45 / wide, 0.6 / high, 0.1 / wide, 1 - 0.75 / high)))
    bar.ax.set_title("trial", fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar.outline.set_edgecolor(GRID)
    return f"{record.metric} of each trial by each key, later trials darker", figure


def budgets(curves: Mapping[str, Budget], record: Trials) -> Drawing | None:
    """The expected best figure of each search by its number of trials."""
    return styled(partial(_budgets, curves, record))


def _budgets(curves: Mapping[str, Budget], record: Trials) -> Drawing:
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    figure.subplots_adjust(0.13, 0.16, 0.97, 0.96)
    for (name, curve), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        trials = np.arange(1, len(curve.best) + 1)
        axes.plot(trials, curve.best, color=colour, label=name)
        axes.fill_between(trials, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="trials", ylabel=f"expected {record.goal} {record.metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    caption = f"The {record.goal} {record.metric} expected of so many random trials, with the bootstrap's 95 % interval"
    return Drawing("search_budgets", caption, figure)


def _scaled(axes: Axes, values: np.ndarray) -> None:
    """Use a logarithmic scale if a linear one would compress the good trials into a line."""
    if values.min() > 0 and values.max() / values.min() > 5:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
