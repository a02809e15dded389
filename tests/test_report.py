"""The table in the terminal."""

import io

from rich.console import Console
from test_results import result

from vae_lab import report
from vae_lab.results import Losses, Result, Timing


def shown(*found: Result, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(report.summary(found))
    text: str = console.file.getvalue()
    return text


def of(cell: str, total: float, seconds: float = 9.0, **more: object) -> Result:
    losses = Losses(total=total, reconstruction=total / 2, kl=total * 10)
    return result(cell=cell, train=losses, timing=Timing(train_seconds=seconds), **more)


def test_published_figures_stand_beside_ours_in_80_columns() -> None:
    text = shown(*(of(cell, 0.0151) for cell in report.PUBLISHED))
    for cell, row in report.PUBLISHED.items():
        (line,) = [line for line in text.splitlines() if line.strip().startswith(cell)]
        assert line.split() == [
            cell, "0.1510", "0.0076", "0.0151", "9.00",
            f"{row.kl:.4f}", f"{row.reconstruction:.4f}", f"{row.total:.4f}", f"{row.seconds:.2f}",
        ]  # fmt: skip


def test_seeds_are_averaged_and_counted() -> None:
    text = shown(of("vanilla-mine", 0.02), of("vanilla-mine", 0.04), width=100)
    assert "means over 2 seeds" in text
    assert ["vanilla-mine", "0.3000", "0.0150", "0.0300", "9.00"] in [line.split() for line in text.splitlines()]


def test_a_failed_run_leaves_a_hole() -> None:
    failed = result(cell="vanilla-mine", status="failed", error="OSError: no")
    assert ["vanilla-mine", "—", "—", "—", "—"] in [line.split() for line in shown(failed).splitlines()]
    text = shown(failed, of("vanilla-mine", 0.02), width=100)
    assert ["vanilla-mine", "0.2000", "0.0100", "0.0200", "9.00"] in [line.split() for line in text.splitlines()]
    assert "(1 of 2 seeds)" in text


def test_brackets_in_an_error_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(report.failures([("outputs/[x]", "RuntimeError: [/tmp/x] [enforce fail]")]))
    assert "[/tmp/x] [enforce fail]" in console.file.getvalue()
    assert "outputs/[x]" in console.file.getvalue()


def test_published_figures_are_left_out_of_other_sweeps() -> None:
    assert "publ." not in shown(of("mine-mine", 0.02))
