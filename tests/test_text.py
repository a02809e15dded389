"""Text of others in a spreadsheet, a Markdown page, a terminal, a figure."""

import csv
import io
import logging
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from runs import write_run

from vae_lab import report, results
from vae_lab.config.terminal import LogFormatter, say
from vae_lab.config.text import code, markdown, one_line, spreadsheet_cell, visible
from vae_lab.report.terminal import failures, show_report
from vae_lab.trained.foreign import LoadError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "�[2Jgone"),
        ("\x9b31m", "�31m"),
        ("abc\u202egpj.exe", "abc�gpj.exe"),
        ("a\u200bb\ufeff\u2066", "a�b��"),
        ("bell\a\x00", "bell��"),
        ("half \ud800", "half �"),
        ("größe 95\u00a0% 漢字 é", "größe 95\u00a0% 漢字 é"),
        ("two\nlines\r", "two\nlines�"),
    ],
)
def test_what_controls_a_terminal_is_shown_in_place(text: str, shown: str) -> None:
    assert visible(text, keep="\n") == shown


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", " =1", "＝1", "\t=1", "-", "+encoder=x"]
)
def test_a_spreadsheet_runs_no_cell(text: str) -> None:
    cell = str(spreadsheet_cell(text))
    assert cell.startswith(("'", "�"))
    assert cell.removeprefix("'") == visible(text)


@pytest.mark.parametrize("value", ["-1824.3", "+5", "1e-3", "vanilla", "a=b", -1824.3, 3, None, True, "-inf", ""])
def test_numbers_and_words_stay_as_they_are_in_a_spreadsheet(value: object) -> None:
    assert spreadsheet_cell(value) is value or spreadsheet_cell(value) == value


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)>"),
        ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
        ("[click](javascript:alert(1))", r"\[click\](javascript:alert(1))"),
        (r"\[click](x)", r"\\\[click\](x)"),
        ("a | b", r"a \| b"),
        ("two\n# lines", "two # lines"),
        ("run `vae-lab report <x>`", "run `vae-lab report <x>`"),
        ("`<b>`` x", r"\`&lt;b>\`\` x"),
        ("odd ` <b>", r"odd \` &lt;b>"),
        ("vanilla-encdec__optimizer-lr-0.1", "vanilla-encdec__optimizer-lr-0.1"),
    ],
)
def test_markup_is_text_in_markdown(text: str, page: str) -> None:
    assert markdown(text) == page


def test_code_in_markdown_cannot_be_ended_by_what_is_in_it() -> None:
    assert code("a`<b>`|\n\x1b") == "`aʹ<b>ʹ¦ �`"


EVIL = "\x1b]0;x\a<script>a|[b](c)`d` \u202e\n=1"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Runs whose every text is somebody else's."""
    terms = {"total": "nats", "reconstruction": "nats", "kl": "nats", f"=t{EVIL}": EVIL}
    changes = {
        "encoder": f"=e{EVIL}",
        "overrides": ["optimizer.lr=0.1"],
        "warnings": [f"kind: {EVIL}"],
        "terms": terms,
        "test": results.Test(total=0.1, reconstruction=0.1, kl=0.1, **{f"=t{EVIL}": 0.5}),
    }
    run = write_run(tmp_path / "x", "vanilla", device=EVIL, cell="c-d")
    other = write_run(tmp_path / "x", "vanilla", seed=1, cell="c-d")
    for folder, further in ((run, {}), (other, {"status": "failed", "error": f"=cmd {EVIL}"})):
        result = results.read_result(folder)
        assert result is not None
        results.write_result(folder, result.model_copy(update=changes | further | {"cell": f"@c{EVIL}"}))
    return tmp_path / "x"


def test_a_report_holds_no_markup_formula_or_control_of_others(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_report([sweep])
    shown = capsys.readouterr().out
    folder = sweep / "report"
    page, table = (folder / "report.md").read_text(), (folder / "results.csv").read_text()
    for text in (shown, page, table, (folder / "report.html").read_text()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    outside_code = re.sub(r"(?<![\\`])`[^`\n]+`", "", page)
    assert "<script" not in outside_code
    assert not re.search(r"(?<!\\)\[b", outside_code)
    for row in csv.reader(io.StringIO(table)):
        assert not [cell for cell in row if cell.lstrip().startswith(("=", "@"))]
    figures = [*folder.glob("*.svg")]
    assert figures
    for figure in figures:
        ElementTree.fromstring(figure.read_text())
        assert "\x1b" not in figure.read_text()


def test_the_terminal_shows_markup_and_controls_of_others_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"[red]{EVIL}")
    record = logging.LogRecord("x", logging.INFO, "x", 0, "%s", (EVIL,), None)
    texts = [capsys.readouterr().out, LogFormatter("%(message)s").format(record), str(LoadError(EVIL))]
    texts += [str(cell) for column in failures([("[/]", EVIL)]).columns for cell in column.cells]
    for text in texts:
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    assert texts[0].startswith("[red]")


def test_one_line_has_one() -> None:
    assert one_line("a\n b\t\x1b c") == "a b � c"


def test_a_report_is_not_written_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "x")
    (tmp_path / "home").mkdir()
    (tmp_path / "x/report").symlink_to(tmp_path / "home")
    assert not show_report([tmp_path / "x"])
    assert "report is a link" in capsys.readouterr().err
    assert not [*(tmp_path / "home").iterdir()]
    with pytest.raises(OSError, match="is a link"):
        report.pages.place([tmp_path / "x"])
