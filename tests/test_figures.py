"""The catalogue of figures, and whoever reads it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vae_lab import results
from vae_lab.results import figures

PROJECT = Path(__file__).parents[1]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("document_figures", PROJECT / "scripts" / "document_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_docs_have_the_catalogue() -> None:
    text = (PROJECT / "docs" / "numbers.md").read_text(encoding="utf-8")
    assert script().table() in text, "run python scripts/document_figures.py"


def test_every_row_says_what_the_figure_means() -> None:
    for name, row in figures.CATALOGUE.items():
        assert row.name == name
        assert row.heading
        assert row.meaning
        assert row.table in ("", figures.COST, *figures.TABLES)


def test_a_result_has_every_figure_of_the_test() -> None:
    assert {*figures.OF_TEST} <= results.Test().model_dump().keys()


@pytest.mark.parametrize(
    ("name", "label", "better", "hangs_on"),
    [
        ("test.elbo", "ELBO, nats", "higher", "likelihood"),
        ("test.iwae_5000", "IWAE-5000, nats", "higher", "likelihood"),
        ("val.total", "val total", "lower", "objective"),
        ("test.spread", "test spread", None, "units"),
        ("test.brightness", "mean brightness, squared", "higher", ""),
        ("test.unknown", "unknown", None, ""),
    ],
)
def test_a_row_is_found_for_any_figure(name: str, label: str, better: str | None, hangs_on: str) -> None:
    brightness = {"heading": "mean brightness", "unit": "squared", "better": "higher", "meaning": "…"}
    row = figures.find(name, {"brightness": brightness}, {"spread": "variance"})
    assert (row.label, row.better, row.hangs_on) == (label, better, hangs_on)


def test_terms_come_in_one_order() -> None:
    assert figures.terms_first(["kl", "spread", "total", "reconstruction"]) == [
        "total", "reconstruction", "kl", "spread",
    ]  # fmt: skip
