"""Intervals over seeds and test images."""

import json
from pathlib import Path

import numpy as np
import pytest
from runs import write_grid, write_run

from vae_lab import results
from vae_lab.report import pages
from vae_lab.study.beyond_images import beyond_images, crossed
from vae_lab.study.contrasts import estimate
from vae_lab.study.gather import gather


def drawn(seeds: int, images: int, spread: tuple[float, float, float], generator: np.random.Generator) -> np.ndarray:
    """A figure of mean 10 with these standard deviations of seeds, images and the rest."""
    of_seeds, of_images, rest = spread
    seed, image = generator.normal(0, of_seeds, (seeds, 1)), generator.normal(0, of_images, (1, images))
    return 10 + seed + image + generator.normal(0, rest, (seeds, images))


@pytest.mark.parametrize("spread", [(0.0, 1.0, 0.3), (0.05, 1.0, 0.3), (0.2, 1.0, 0.3), (0.5, 0.1, 0.1)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_covers_the_mean_of_all_seeds_and_images(seeds: int, spread: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(0)
    found = [crossed(drawn(seeds, 200, spread, generator)) for _ in range(400)]
    covered = np.mean([one.low is not None and one.low <= 10 <= (one.high or 0) for one in found])
    assert 0.9 <= covered <= 0.985


def test_seeds_alone_leave_out_the_images() -> None:
    generator = np.random.default_rng(1)
    tables = [drawn(5, 200, (0.05, 1.0, 0.3), generator) for _ in range(300)]
    seeds = [estimate(table.mean(1)) for table in tables]
    assert np.mean([(one.low or 0) <= 10 <= (one.high or 0) for one in seeds]) < 0.9


def test_one_seed_tells_of_images_only_and_one_image_of_seeds() -> None:
    values = np.random.default_rng(0).normal(size=(1, 50))
    one = crossed(values)
    half = estimate(values[0])
    assert (one.seeds, one.images) == (1, 50)
    assert (one.low, one.high) == (pytest.approx(half.low), pytest.approx(half.high))
    assert crossed(values.T).high == pytest.approx(half.high)
    assert crossed(values[:, :1]).low is None
    assert crossed(np.ones((3, 4))).low is None


def write_images(sweep: Path, images: int = 40) -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 0.005, images)
    for folder in sweep.glob("*/seed-*"):
        result = results.read_result(folder)
        assert result is not None
        assert result.test.total is not None
        noise = generator.normal(0, 1e-4, images)
        results.write_test_images(folder, {"total": (result.test.total + shared + noise).astype(np.float32)})


def test_the_report_says_what_holds_for_other_images(tmp_path: Path) -> None:
    write_grid(tmp_path / "x")
    write_images(tmp_path / "x")
    report = pages.prepare([tmp_path / "x"])
    folder = pages.write(report)
    page = (folder / "report.md").read_text()
    assert "## For other test images" in page
    assert "these 40 test images" in page
    stored = json.loads((folder / "statistics.json").read_text())["beyond_test_images"]["test.total"]
    assert {*stored["cells"]} == {*report.study.cells}
    assert len(stored["differences"]) == len(report.study.cells) - 1
    for cell, own in stored["cells"].items():
        by_seeds = report.statistics["test.total"].cells[cell]
        assert own["high"] - own["low"] > (by_seeds.high or 0) - (by_seeds.low or 0)
    for one in stored["differences"]:  # what the images share cancels
        assert one["of_both"]["high"] - one["of_both"]["low"] < own["high"] - own["low"]


def test_one_seed_says_nothing_about_other_seeds(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=1)
    write_images(tmp_path / "x")
    page = (pages.write(pages.prepare([tmp_path / "x"])) / "report.md").read_text()
    assert "over test images, with this seed" in page
    assert "for other images of the same kind." in page
    assert "over seeds and test images" not in page


def test_what_is_not_known_of_each_image_is_left_out(tmp_path: Path) -> None:
    write_grid(tmp_path / "x")
    assert beyond_images(gather([tmp_path / "x"]), "test.total") is None
    write_images(tmp_path / "x")
    missing, short, broken = sorted((tmp_path / "x").glob("*/seed-0"))[:3]
    (missing / results.TEST_IMAGES).unlink()
    results.write_test_images(short, {"total": np.zeros(7, np.float32)})
    (broken / results.TEST_IMAGES).write_bytes(b"PK")
    study = gather([tmp_path / "x"])
    found = beyond_images(study, "test.total")
    assert found is not None
    assert len(found.cells) == len(study.cells) - 3
    pages.write(pages.prepare([tmp_path / "x"]))


def test_figures_that_are_no_numbers_are_not_used(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x")
    for values in (np.full(5, np.nan, np.float32), np.zeros((2, 2), np.float32), np.zeros(0, np.float32)):
        results.write_test_images(folder, {"total": values})
        assert beyond_images(gather([tmp_path / "x"]), "test.total") is None
    results.write_test_images(folder, {"total": np.zeros(5, np.float64)})  # another type than runs write
    assert results.read_test_images(folder) == {}
