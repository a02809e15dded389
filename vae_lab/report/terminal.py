"""The report in the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vae_lab import results
from vae_lab.config.terminal import say, shown
from vae_lab.config.text import visible
from vae_lab.report import pages, tables
from vae_lab.report.tables import MISSING, figure, of_metrics
from vae_lab.results import figures
from vae_lab.study.gather import TOTAL, Study, StudyError, find
from vae_lab.study.published import beside
from vae_lab.study.statistics import Comparison

MOST_HOLES = 10
"""Largest number of missing runs listed in the terminal; the report lists all."""


def show_report(folders: Sequence[Path], out: Path | None = None, *, all_pictures: bool = False) -> bool:
    """Write the report of the runs under these folders and print its findings; False if that fails."""
    try:
        find(folders)
        # Lock the report: with several processes, the last one to read the runs must be the last one to write.
        with results.in_turn(pages.place(folders) if out is None else out):
            prepared = pages.prepare(folders)
            place = pages.write(prepared, out, all_pictures=all_pictures)
    except StudyError as error:
        say(f"No report: {error}", error=True)
        return False
    except OSError as error:
        path = f"{error.filename} " if error.filename else ""
        say(f"No report: {path}{error.strerror or error}", error=True)
        return False
    # The files are complete before anything is printed, since the reader of a pipe may stop reading at any line.
    console = Console()
    for table in (summary(prepared.study, prepared.statistics), *details(prepared.study, prepared.statistics)):
        console.print(table)
    missing = [f"{hole.run}: {hole.reason}" for hole in prepared.study.holes]
    if len(missing) > MOST_HOLES:
        missing[MOST_HOLES:] = [f"{len(missing) - MOST_HOLES} more missing runs: see the report"]
    wrong = [*missing, *prepared.study.symptoms, *prepared.study.notes]
    for sign, sentences, style in (("•", prepared.findings, ""), ("!", wrong, "yellow")):
        for sentence in sentences:
            if "`" in sentence:  # a command, which must not be wrapped
                say(f"{sign} {sentence.replace('`', '')}")
                continue
            hanging = Table.grid(padding=(0, 1, 0, 0))
            hanging.add_row(sign, _text(sentence), style=style)
            console.print(hanging)
    console.print()
    for folder in folders:
        say(f"Files: {shown(folder)}")
    say(f"Report: {shown(place / 'report.html')}")
    return True


def _text(text: str, style: str = "") -> Text:
    """Text that may come from a stranger, as it is: brackets are not rich's markup."""
    return Text(visible(text, keep="\n"), style)


# --- Tables ------------------------------------------------------------------------------------------------

SUMMED_UP = {
    "train.kl": ("KL", 4), "train.reconstruction": ("recon.", 4), "train.total": ("total", 4),
    "timing.train_seconds": ("time", 2),
}  # fmt: skip
"""Figure → its heading and its decimals."""


def summary(study: Study, statistics: Mapping[str, Comparison]) -> Table:
    """One row per cell: the training losses of the last epoch, the training time and the test total.

    Values are means over the seeds; the test total has its interval. Beside them are the published figures of the same
    models, if there are any; with several seeds those of the total only, for lack of room.
    """
    seeds = len(study.seeds)
    several = seeds > 1
    title = "Training losses of the last epoch, training time in seconds" + (
        f"; means over {seeds} seeds" if several else ""
    )
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column(tables.cell_heading(study), overflow="fold", min_width=len("encoder-decoder"))
    for heading in (*(heading for heading, _ in SUMMED_UP.values()), *(("test total",) if several else ())):
        grid.add_column(heading, justify="right", no_wrap=True)
    published = {(row.cell, row.published.metric): row.published.value for row in beside(study, statistics)}
    theirs = [name for name in (["train.total"] if several else SUMMED_UP) if any(name in key for key in published)]
    for name in theirs:
        grid.add_column(f"publ.\n{SUMMED_UP[name][0]}", justify="right", no_wrap=True, style="dim")
    for cell in study.cells:
        runs = len(study.of(cell))
        missing_seeds = f"\n({runs} of {seeds} seeds)" if runs < seeds and several else ""
        means = {name: statistics[name].cells[cell].mean if name in statistics else None for name in SUMMED_UP}
        row = [_rounded(name, mean, MISSING) for name, mean in means.items()]
        if several:
            row.append(figure(TOTAL, statistics[TOTAL].cells[cell] if TOTAL in statistics else None))
        row += [_rounded(name, published.get((cell, name)), "") for name in theirs]
        grid.add_row(_text(study.label(cell) + missing_seeds), *row)
    return grid


def _rounded(name: str, value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.{SUMMED_UP[name][1]}f}"


BRIEF = {row.label: row.brief for row in figures.CATALOGUE.values()}
HELD_OUT = ("test.total", "test.kl", "val.total")
HELD_OUT_QUALITY = ("test.elbo", "test.iwae_100", "test.psnr", "test.fid_samples", "test.active_units")


def details(study: Study, statistics: Mapping[str, Comparison]) -> list[Table]:
    """Held-out losses and cost, one row per cell; the best is bold if it is shown to be better than all others."""
    chosen = [
        of_metrics("Held-out losses", HELD_OUT, study, statistics),
        of_metrics("Held-out quality", [name for name in HELD_OUT_QUALITY if name in study.metrics], study, statistics),
        of_metrics(figures.COST, figures.in_table(figures.COST), study, statistics),
    ]
    return [_grid(table) for table in chosen if len(table.columns) > 2]


def _grid(table: tables.Table) -> Table:
    grid = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    first, _, *headings = table.columns  # the summary has the number of runs
    grid.add_column(first, overflow="fold", min_width=len(first))
    for heading in headings:
        grid.add_column(_text(BRIEF.get(heading, heading)), justify="right", overflow="fold")
    for row in table.rows:
        texts = [_text(entry.text, "bold green" if entry.best else "") for entry in row]
        grid.add_row(*texts[:1], *texts[2:])
    return grid


def metrics_table(found: Sequence[tuple[str, results.Result]]) -> Table:
    """The test metrics of runs: one row per metric, one column per run."""
    columns = [{f"test.{name}": value for name, value in result.test.model_dump().items()} for _, result in found]
    rows: dict[str, figures.Figure] = {}
    for _, result in found:
        known = result.measured()
        further = {key: node.model_dump() for key, node in known.further.items()} if known else {}
        names = (f"test.{name}" for name in figures.terms_first([*result.terms, *result.test.model_dump()]))
        rows |= {name: figures.find(name, further, result.terms) for name in names if name not in rows}
    grid = Table(title="Test metrics", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("metric")
    for folder, _ in found:
        grid.add_column(_text(folder), justify="right", overflow="fold")
    for name, row in rows.items():
        values = [own.get(name) for own in columns]
        if any(type(value) in (int, float) for value in values):
            grid.add_row(_text(row.label), *(_number(row, value) for value in values))
    return grid


def _number(row: figures.Figure, value: float | None) -> str:
    places = 0 if isinstance(value, int) else row.digits
    return MISSING if value is None else f"{value * row.scale:,.{places}f}".replace("-", "−")


def failures(found: Sequence[tuple[str, str]]) -> Table:
    """One row per failed run: its folder and its error."""
    grid = Table(title="Failed runs", title_style="bold red", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("run", overflow="fold")
    grid.add_column("error", overflow="fold")
    for folder, error in found:
        grid.add_row(_text(folder), _text(error))
    return grid
