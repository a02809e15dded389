"""Results to tables. Reads nothing but results, imports no torch."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from vae_lab.results import Result


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


COLUMNS = ("KL", "recon.", "total", "time")


def summary(found: Sequence[Result]) -> Table:
    """One row a cell: the training losses of the last epoch and the training time, means over the seeds.

    Cells of the published experiment have its figures beside theirs.
    """
    cells: dict[str, list[Result]] = {}
    for result in found:
        cells.setdefault(result.cell, []).append(result)
    compared = any(cell in PUBLISHED for cell in cells)
    seeds = max((len(group) for group in cells.values()), default=0)
    title = "Training losses of the last epoch, training time in seconds" + (
        f"; means over {seeds} seeds" if seeds > 1 else ""
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("encoder-decoder", overflow="fold")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    if compared:
        for heading in COLUMNS:
            table.add_column(f"publ.\n{heading}", justify="right", no_wrap=True, style="dim")
    for cell, group in cells.items():
        finished = [result for result in group if result.finished]
        hole = f"\n({len(finished)} of {seeds} seeds)" if len(finished) < seeds and seeds > 1 else ""
        table.add_row(
            Text(cell + hole),
            _mean([result.train.kl for result in finished], ".4f"),
            _mean([result.train.reconstruction for result in finished], ".4f"),
            _mean([result.train.total for result in finished], ".4f"),
            _mean([result.timing.train_seconds for result in finished], ".2f"),
            *(_published(cell) if compared else []),
        )
    return table


def _mean(values: Sequence[float | None], form: str) -> str:
    present = [value for value in values if value is not None]
    return f"{fmean(present):{form}}" if present else "—"


def _published(cell: str) -> list[str]:
    if cell not in PUBLISHED:
        return [""] * 4
    row = PUBLISHED[cell]
    return [f"{row.kl:.4f}", f"{row.reconstruction:.4f}", f"{row.total:.4f}", f"{row.seconds:.2f}"]


def failures(found: Sequence[tuple[str, str]]) -> Table:
    """One row for each run that failed: its folder and what happened."""
    table = Table(
        title="Failed runs", title_style="bold red", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("run", overflow="fold")
    table.add_column("error", overflow="fold")
    for folder, error in found:
        table.add_row(Text(folder), Text(error))  # brackets in them are not rich's markup
    return table
