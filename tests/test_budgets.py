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


def record(
    losses: list[float], sampler: str = "random", metric: str = "val.total", fixed: tuple[str, ...] = ()
) -> Trials:
    trials = [
        Trial(number=index, values={"optimizer.lr": 0.01}, state="finished", loss=loss, run=f"a/seed-{index}")
        for index, loss in enumerate(losses)
    ]
    space = {"optimizer.lr": Number(low=0.001, high=0.1)}
    return Trials(metric=metric, sampler=sampler, seed=0, fixed=[*fixed], space=space, trials=trials)


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
    assert table.columns == ("search", "finished", "best of 1", "best of 3")
    assert [row[1].text for row in table.rows] == ["5 of 5", "3 of 3"]
    assert "(" in table.rows[0][2].text, "an interval"
    assert "(" not in table.rows[0][3].text, "of as many trials as there are it would be too narrow"
    assert [row[0].text for row in table.rows] == ["one", "other"]
    drawing = [*searches.drawings(both)][-1]()
    assert drawing is not None
    assert drawing.name == "search_budgets"
    png, _ = render(drawing)
    (tmp_path / "x.png").write_bytes(png)


@pytest.mark.parametrize(
    "other",
    [
        record([0.1] * 5, sampler="tpe"), record([0.1] * 5, metric="val.kl"), record([0.1]),
        record([0.1] * 5, fixed=("objective.beta=1",)), record([0.1] * 5, fixed=("data.num_train=10",)),
    ],
)  # fmt: skip
def test_searches_that_are_not_alike_are_not_compared(other: Trials) -> None:
    both = [Search("one", record([0.3, 0.2, 0.25]), 0.2), Search("other", other, 0.1)]
    assert "Equal budgets" not in [table.title for table in searches.tables(both)]


def test_a_search_that_fails_half_the_time_is_not_flattered() -> None:
    whole = record([0.3, 0.2, 0.25, 0.4])
    failing = whole.plus(
        [Trial(number=n, values={"optimizer.lr": 0.01}, state="failed", run=f"a/{n}") for n in range(4, 8)]
    )
    assert len(budget(failing).best) == 8
    assert budget(failing).best[0] > budget(whole).best[0]


def test_the_interval_of_small_budgets_covers_what_the_docs_say() -> None:
    generator = np.random.default_rng(0)
    truth = expected_lowest(generator.lognormal(size=1000))
    covered = []
    for _ in range(150):
        found = budget(record([*generator.lognormal(size=20)]))
        covered.append((found.low[:10] <= truth[:10]) & (truth[:10] <= found.high[:10]))
    assert 0.7 < np.mean(covered, axis=0)[9] < np.mean(covered, axis=0)[0] < 0.95
