"""The figures of `make bench` as Markdown tables and a plot."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from vae_lab.benchmark.turns import TARGET
from vae_lab.study.plots import COLOURS, STYLE

NAMES = {
    "ours": "(a) this project",
    "bare": "(b) bare loop of the same step",
    "user": "(c) what a user would write",
    "published": "(d) published set-up",
}
BEGIN = "<!-- From here on written by scripts/benchmark.py. -->"

Figures = dict[str, Any]


def page(found: Figures) -> str:
    """All measured parts, each with a heading, a table and its result."""
    parts = [part(found) for key, part in PARTS.items() if key in found]
    return "\n\n".join([_surroundings(found["surroundings"]), *parts]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _middle(found: Figures | None, scale: float = 1.0, digits: int = 2) -> str:
    if found is None:
        return "–"
    value, low, high = (None if found[key] is None else scale * found[key] for key in ("value", "low", "high"))
    between = "" if low is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{between}"


def _surroundings(found: Figures) -> str:
    versions = [
        f"Python {found['python']}",
        *(f"{name} {found[name]}" for name in ("torch", "torchvision", "lightning")),
    ]
    return (
        f"{found['date']}; {found['device']}, {found['system']}, {found['threads']} thread"
        f"{'s' * (found['threads'] > 1)}, {found['precision']}; {', '.join(versions)}; commit {found['commit']}. "
        "Load of the machine (processes that were busy in the last minute, the measurement among them): "
        f"{found['load']:.1f} at the start, {found['load_after']:.1f} at the end. Medians, with their 95 % intervals "
        "where there are six values or more."
    )


def _turns(found: Figures) -> str:
    turns, more = found["turns"], found["turns"]["overhead"]
    rows = []
    for name, label in NAMES.items():
        one = turns[name]
        times = "" if name == "ours" else _middle(one["times_ours"])
        rows.append(
            [
                label,
                f"{one['images_per_second']:,.0f}",
                _middle(one["epoch_seconds"]),
                f"{_middle(one['seconds_to_target'])}, {one['reached']}",
                times,
            ]
        )
    head = ["", "images/s", "seconds an epoch", f"seconds to {TARGET:.4f}, reached", "times (a)'s"]
    return (
        "## Four trainings in turns\n\n"
        f"{_table(head, rows)}\n\n"
        f"The training steps of (a) take {_middle(more['ratio'], digits=3)} times as long as those of (b), "
        f"{more['pairs']} pairs of epochs; the difference is {_middle(more['microseconds_a_step'], digits=0)} µs "
        "a step."
    )


def _starts(found: Figures) -> str:
    starts = found["starts"]
    rows = [
        [NAMES[name], f"{starts[name]['first_step_seconds']:.1f}", f"{starts[name]['peak_bytes'] / 1e6:,.0f}"]
        for name in ("ours", "user", "published")
    ]
    head = ["", "seconds from the command to the end of the first step", "peak of the process, MB"]
    return (
        "## Start and memory\n\n"
        f"{_table(head, rows)}\n\n"
        f"`--help` takes {starts['help']['seconds']:.2f} s, `latent.dim=0` and its error message "
        f"{starts['mistake']['seconds']:.2f} s."
    )


def _machine(found: Figures) -> str:
    peaks = found["machine"]
    rows = [
        [name, *(f"{peaks[name][key] / 1e9:,.0f}" for key in ("matrix_product", "convolution"))]
        for name in ("32-true", "bf16-mixed")
    ]
    text = _table(["GFLOP/s", "matrix product", "convolution"], rows)
    if "turns" in found:
        rate = 3 * peaks["flops_per_image"] * found["turns"]["ours"]["images_per_second"]
        best = max(peaks[peaks["precision"]][key] for key in ("matrix_product", "convolution"))
        text += (
            f"\n\nThe training computes {rate / 1e9:,.0f} GFLOP/s, {100 * rate / best:.0f} % of the better one of its "
            "precision. Backwards counts twice what forwards does; norms, activations, optimiser and whatever only "
            "moves memory count for nothing."
        )
    return f"## The machine's own peak\n\n{text}"


def _grown(title: str, key: str, form: Callable[[Any], str]) -> Callable[[Figures], str]:
    def part(found: Figures) -> str:
        rows = [
            [
                form(one[key]),
                f"{one['parameters']:,}",
                f"{one['flops_per_image'] / 1e6:.1f}",
                f"{one['epoch_seconds']:.2f}",
                f"{one['images_per_second']:,.0f}",
                _middle(one["overhead"]["ratio"], digits=3),
                _middle(one["overhead"]["microseconds_a_step"], digits=0),
            ]
            for one in found[key + "s"]
        ]
        head = [
            key,
            "parameters",
            "MFLOPs an image",
            "seconds an epoch",
            "images/s",
            "(a) / (b)",
            "(a) − (b), µs a step",
        ]
        return f"## {title}\n\n{_table(head, rows)}"

    return part


def _grid(found: Figures) -> str:
    grid = found["grid"]
    rows = [
        [
            f"{run['cell']}, seed {run['seed']}",
            f"{run['train_total']:.4f}",
            f"{run['train_seconds']:.1f}",
            f"{run['peak_bytes'] / 1e6:,.0f}" if run["peak_bytes"] else "–",
            f"{run['overhead_seconds']:.2f}" if index else "",
            f"{run['ended']:.1f}",
        ]
        for index, run in enumerate(grid["runs"])
    ]
    head = ["run", "training total", "`train_seconds`", "peak, MB", "overhead, s", "ended after, s"]
    first = [run["train_seconds"] for run in grid["runs"] if run["seed"] == grid["runs"][0]["seed"]]
    return (
        "## A multirun\n\n"
        f"{_table(head, rows)}\n\n"
        f"The {len(first)} runs of one seed train for {sum(first):.1f} s together. The whole command takes "
        f"{grid['seconds']:.1f} s, {grid['after_the_last_run']:.1f} s of them after the last run, for the report."
    )


PARTS: dict[str, Callable[[Figures], str]] = {
    "turns": _turns,
    "starts": _starts,
    "machine": _machine,
    "images": _grown("More images", "image", lambda count: f"{count:,}"),
    "widths": _grown("Wider networks", "width", lambda width: f"{width}×"),
    "grid": _grid,
}


def plot(found: Figures) -> Canvas | None:
    """The speed of the four loops, and the growth with images, width and runs: one panel per measured part."""
    import matplotlib

    panels = list(_panels(found))
    if not panels:
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.2 * len(panels), 3.4), layout="constrained")
        for axes, (title, draw) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            axes.set_title(title)
            draw(axes)
    return canvas


def _panels(found: Figures) -> Iterator[tuple[str, Callable[[Any], None]]]:
    if "turns" in found:
        yield "images a second", lambda axes: _bars(axes, found["turns"])
    if "images" in found:
        yield "seconds an epoch by images", lambda axes: _line(axes, _growth(found, "image"))
    if "widths" in found:
        yield "seconds an epoch by width", lambda axes: _line(axes, _growth(found, "width"))
    if "grid" in found:
        runs = found["grid"]["runs"]
        yield (
            "seconds by runs of a sweep",
            lambda axes: _line(
                axes, [(number, run["ended"]) for number, run in enumerate(runs, start=1)], logarithmic=False
            ),
        )


def _growth(found: Figures, key: str) -> list[tuple[float, float]]:
    return [(one[key], one["epoch_seconds"]) for one in found[key + "s"]]


def _bars(axes: Any, turns: Figures) -> None:
    names = [*reversed(NAMES)]
    colours = [COLOURS[0 if name == "ours" else 7] for name in names]
    axes.barh([NAMES[name] for name in names], [turns[name]["images_per_second"] for name in names], color=colours)


def _line(axes: Any, points: Sequence[tuple[float, float]], *, logarithmic: bool = True) -> None:
    axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[0])
    if logarithmic and len(points) > 1:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, places, numbers in (
            (axes.xaxis, FixedLocator([x for x, _ in points]), EngFormatter(sep="")),
            (axes.yaxis, LogLocator(subs=(1, 2, 5)), StrMethodFormatter("{x:,g}")),
        ):
            axis.set_major_locator(places)
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(numbers)
    else:
        axes.set_ylim(bottom=0)


def insert(document: Path, text: str) -> None:
    """Write the tables into a document, in place of everything after the line `BEGIN`.

    Raises:
        ValueError: if it has no such line.
    """
    before, found, _ = document.read_text(encoding="utf-8").partition(BEGIN)
    if not found:
        raise ValueError(f"{document} has no line {BEGIN!r}, after which the figures go")
    document.write_text(f"{before}{BEGIN}\n\n{text}", encoding="utf-8")
