"""Searches at equal budgets."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from vae_lab.report import searches
from vae_lab.report.searches import Search
from vae_lab.results.trials import Number, Trial, Trials
from vae_lab.study.budgets import budget, expected_lowest
from vae_lab.study.plots import render


def test_the_expected_lowest_of_n_is_the_mean_over_all_ways_to_draw_n() -> None:
    losses = [3.0, 1.0, 2.5, 7.0]
    for n, found in enumerate(expected_lowest(losses), start=1):
        assert found == pytest.approx(np.mean([min(draw) for draw in itertools.product(losses, repeat=n)]))


def record(losses: list[float], sampler: str = "random", metric: str = "val.total") -> Trials:
    trials = [
        Trial(number=index, values={"optimizer.lr": 0.01}, state="finished", loss=loss, run=f"a/seed-{index}")
        for index, loss in enumerate(losses)
    ]
    space = {"optimizer.lr": Number(low=0.001, high=0.1)}
    return Trials(metric=metric, sampler=sampler, seed=0, fixed=[], space=space, trials=trials)


def test_a_figure_to_maximise_keeps_its_sign() -> None:
    found = budget(record([-5.0, -7.0, -6.0], metric="val.elbo"))
    assert found.best[0] == pytest.approx(6.0)
    assert 6 < found.best[-1] < 7
    assert (found.low <= found.best).all()
    assert (found.best <= found.high).all()


def test_several_random_searches_of_one_metric_are_compared_at_the_budgets_of_the_smallest(tmp_path: Path) -> None:
    both = [Search("one", record([0.3, 0.2, 0.25, 0.4, 0.5]), 0.2), Search("other", record([0.3, 0.2, 0.1]), 0.1)]
    *_, table = searches.tables(both)
    assert table.title == "Equal budgets"
    assert table.columns == ("search", "trials", "best of 1", "best of 2", "best of 3")
    assert [row[0].text for row in table.rows] == ["one", "other"]
    drawing = [*searches.drawings(both)][-1]()
    assert drawing is not None
    assert drawing.name == "search_budgets"
    png, _ = render(drawing)
    (tmp_path / "x.png").write_bytes(png)


@pytest.mark.parametrize("other", [record([0.1] * 5, sampler="tpe"), record([0.1] * 5, metric="val.kl"), record([0.1])])
def test_searches_that_are_not_alike_are_not_compared(other: Trials) -> None:
    both = [Search("one", record([0.3, 0.2, 0.25]), 0.2), Search("other", other, 0.1)]
    assert "Equal budgets" not in [table.title for table in searches.tables(both)]
