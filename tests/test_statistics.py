"""Intervals that cover, tests that hold their level, effects that are those of the design."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from vae_lab.study.contrasts import estimate, false_discovery_rates, holm
from vae_lab.study.statistics import MOST_CELLS, Comparison, compare, explored

FACTORS = {"encoder": ("vanilla", "encdec"), "decoder": ("vanilla", "encdec")}
GRID = {f"{encoder}-{decoder}": (encoder, decoder) for encoder in FACTORS["encoder"] for decoder in FACTORS["decoder"]}


def table(rows: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(GRID) if rows.shape[1] == 4 else [f"c{i}" for i in range(rows.shape[1])])


def grid_of(rows: np.ndarray) -> Comparison:
    return compare(table(rows), factors=FACTORS, levels=GRID)


def simulated(random: np.random.Generator, seeds: int, means: np.ndarray) -> np.ndarray:
    """Test totals of a grid: what the seed does to all cells, and what chance does to each."""
    return means + 1e-4 * random.normal(size=(seeds, 1)) + 5e-5 * random.normal(size=(seeds, len(means)))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_the_truth_all_at_once(seeds: int) -> None:
    """Known effects: the encoder adds 4e-5, the decoder nothing, no interaction."""
    random, repeats = np.random.default_rng(seeds), 1000
    means = np.array([0.016, 0.016, 0.01604, 0.01604])
    of_cells = together = wrong = 0
    truth = {"encoder": 4e-5, "decoder": 0.0, "encoder:decoder": 0.0}
    for _ in range(repeats):
        found = grid_of(simulated(random, seeds, means))
        of_cells += sum(one.low <= mean <= one.high for one, mean in zip(found.cells.values(), means, strict=True))
        place = dict(zip(GRID, means, strict=True))
        together += all(
            one.low is None or one.low <= true <= one.high
            for one, true in [
                *((pair, place[pair.a] - place[pair.b]) for pair in found.pairs),
                *((effect, truth[effect.factor]) for effect in found.effects),
            ]
        )
        equal = [pair for pair in found.pairs if pair.a.split("-")[0] == pair.b.split("-")[0]]
        wrong += any(one.different for one in [*equal, *found.effects[1:]])
    assert 0.93 <= of_cells / (repeats * 4) <= 0.97
    assert 0.93 <= together / repeats <= 0.975
    assert wrong / repeats <= 0.06


@pytest.mark.parametrize(("seeds", "power"), [(3, 0.5), (5, 0.88)])
def test_a_cell_that_is_three_deviations_better_is_found(seeds: int, power: float) -> None:
    random, means = np.random.default_rng(seeds), np.array([3, 0, 0, 0])
    tables = (random.normal(size=(seeds, 4)) + random.normal(size=(seeds, 1)) + means for _ in range(500))
    found = [grid_of(rows).pairs[0].different for rows in tables]
    assert np.mean(found) >= power


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_pairs_alone_are_tested_by_tukeys_studentised_range(seeds: int) -> None:
    rows = np.random.default_rng(2).normal(size=(seeds, 4)) + np.array([0, 1, 2, 3])
    left = rows - rows.mean(axis=0) - rows.mean(axis=1, keepdims=True) + rows.mean()
    error = ((left**2).sum() / (3 * (seeds - 1)) / seeds) ** 0.5
    for pair in compare(table(rows)).pairs:
        expected = stats.studentized_range.sf(abs(pair.difference) / error, 4, 3 * (seeds - 1))
        assert pair.p_adjusted == pytest.approx(expected, abs=0.01)
        reach = stats.studentized_range.ppf(0.95, 4, 3 * (seeds - 1)) * error
        assert pair.high - pair.difference == pytest.approx(reach, rel=0.03)


def test_one_pair_is_tested_by_the_paired_t_test() -> None:
    rows = np.random.default_rng(1).normal(size=(6, 2)) + np.array([0, 1])
    (pair,) = compare(table(rows)).pairs
    reference = stats.ttest_rel(*rows.T)
    assert (pair.p, pair.p_adjusted) == (pytest.approx(reference.pvalue), pytest.approx(reference.pvalue))
    assert (pair.low, pair.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_with_missing_seeds_differences_are_those_of_the_means_that_are_shown() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 4)) + np.array([0, 3, 0, 0])
    rows[1, 0] = rows[[2, 3], 1] = np.nan
    found = grid_of(rows)
    for pair in found.pairs:
        assert pair.difference == pytest.approx(found.cells[pair.a].mean - found.cells[pair.b].mean)
        assert pair.low < pair.difference < pair.high
    assert found.pair("vanilla-vanilla", "vanilla-encdec").n == 3


def test_a_cell_that_varies_more_asks_for_more() -> None:
    random = np.random.default_rng(4)
    rows = 1e-3 * random.normal(size=(8, 4)) + np.array([1, 1.002, 1, 1])
    assert grid_of(rows).noise.wide is None
    rows[:, 3] += 0.1 * random.normal(size=8)
    found = grid_of(rows)
    assert found.noise.wide.cell == 3
    assert found.noise.wide.outlier is None
    assert found.noise.wide.is_unmistakable
    assert found.pair("vanilla-vanilla", "vanilla-encdec").different  # it is compared without the wide one
    assert not found.pair("vanilla-encdec", "encdec-encdec").different
    rows[:, 3] = [1, 1, 1.001, 1, 0.999, 1, 1, 9]
    found = grid_of(rows)
    assert found.noise.wide.outlier == 7
    untested = [pair for pair in found.pairs if "encdec-encdec" in (pair.a, pair.b)]
    assert [(pair.p, pair.different) for pair in untested] == [(None, False)] * 3
    assert all(pair.low is None and pair.difference is not None for pair in untested)


def test_a_wide_cell_is_named_in_the_whole_table_though_another_has_no_runs() -> None:
    rows = np.random.default_rng(4).normal(size=(6, 5)) * [1, 1, 1, 1, 20]
    rows[:, 0] = rows[2, 1:] = np.nan
    found = compare(pd.DataFrame(rows, columns=list("ABCDE")))
    assert found.container()["noise"]["wide_cell"] == "E"
    rows[:, 4] = [0, 0.1, np.nan, 0, 0, 900]
    assert compare(pd.DataFrame(rows, columns=list("ABCDE"))).noise.wide.outlier == 5


def test_what_a_seed_does_to_all_cells_hides_no_wide_cell() -> None:
    random = np.random.default_rng(4)
    rows = random.normal(size=(8, 4)) * [1, 1, 1, 20] + 100 * random.normal(size=(8, 1))
    assert grid_of(rows).noise.wide.cell == 3


def test_a_cell_of_one_seed_and_a_seed_of_no_cell_do_no_harm() -> None:
    rows = np.random.default_rng(4).normal(size=(6, 4)) * [1, 1, 1, 50]
    rows[1:, 0] = np.nan
    found = grid_of(rows)
    assert found.pair("vanilla-vanilla", "vanilla-encdec").p is None
    rows = np.random.default_rng(4).normal(size=(5, 4))
    more = np.vstack([rows, np.full((1, 4), np.nan)])
    assert grid_of(more).pairs == grid_of(rows).pairs


def test_an_effect_that_is_also_a_pair_counts_once() -> None:
    rows = np.random.default_rng(1).normal(size=(6, 2)) + np.array([0, 1])
    levels = {"a": ("1",), "b": ("2",)}
    found = compare(pd.DataFrame(rows, columns=["a", "b"]), factors={"lr": ("1", "2")}, levels=levels)
    assert found.noise.contrasts == 1
    assert found.effects[0].effect == -found.pairs[0].difference
    assert (found.effects[0].low, found.effects[0].high) == (-found.pairs[0].high, -found.pairs[0].low)
    assert found.effects[0].p_adjusted == found.pairs[0].p_adjusted == found.pairs[0].p


def test_two_seeds_are_too_few_for_a_test() -> None:
    found = grid_of(np.array([[1.0, 2, 3, 4], [1.1, 2.1, 3, 4]]))
    assert not any(one.different or one.p is not None for one in [*found.pairs, *found.effects])


def test_metrics_beside_that_of_record_are_exploratory() -> None:
    random = np.random.default_rng(5)
    found = {f"m{index}": grid_of(random.normal(size=(5, 4))) for index in range(20)}
    found["m0"] = grid_of(random.normal(size=(5, 4)) + np.array([0, 0, 0, 30]))
    marked = explored(found, "m1")
    assert marked["m1"] == found["m1"]
    assert marked["m0"].pair("vanilla-vanilla", "encdec-encdec").different
    p_values = [one.p for name, each in found.items() if name != "m1" for one in [*each.pairs, *each.effects]]
    rates = [one.q for name, each in marked.items() if name != "m1" for one in [*each.pairs, *each.effects]]
    assert rates == pytest.approx(multipletests(p_values, method="fdr_by")[1].tolist())
    assert any(one.p < 0.05 and not one.different for each in marked.values() for one in each.pairs)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_false_discovery_rate_is_that_of_benjamini_and_yekutieli(p_values: list[float]) -> None:
    assert false_discovery_rates(p_values) == pytest.approx(multipletests(p_values, method="fdr_by")[1].tolist())
    assert false_discovery_rates([None, *p_values])[0] is None


def share_called_different(random: np.random.Generator, seeds: int, cells: int, repeats: int) -> float:
    """The share of sweeps over equal cells in which any pair is called different."""
    wrong = 0
    for _ in range(repeats):
        found = compare(table(simulated(random, seeds, np.full(cells, 0.016))))
        assert len(found.pairs) == (cells * (cells - 1) // 2 if cells <= MOST_CELLS else cells - 1)
        wrong += any(pair.different for pair in found.pairs)
    return wrong / repeats


@pytest.mark.slow
def test_in_at_most_a_twentieth_of_the_sweeps_any_of_equal_cells_is_called_different() -> None:
    random = np.random.default_rng(0)
    shares = [share_called_different(random, seeds, cells=4, repeats=500) for seeds in range(3, 11)]
    assert np.mean(shares) <= 0.06


@pytest.mark.parametrize("cells", [2, 12, 20])
def test_the_error_rate_holds_for_other_numbers_of_cells(cells: int) -> None:
    # Of two cells the share is a twentieth exactly: three standard errors of this simulation are allowed.
    share = share_called_different(np.random.default_rng(cells), 5, cells, repeats := 1000)
    assert share <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_correction_is_that_of_holm(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_missing_p_values_do_not_count_in_the_correction() -> None:
    assert holm([0.01, None, 0.02]) == [0.02, None, 0.02]


def test_effects_are_those_of_the_design() -> None:
    # seed by seed: encoder +2, decoder +10, both together 4 more; the seed itself shifts everything
    rows = np.array([[shift, shift + 8, shift, shift + 12] for shift in (1.0, 5.0, 3.0)])
    found = {
        effect.factor: effect for effect in grid_of(rows + np.random.default_rng(0).normal(0, 1e-3, (3, 4))).effects
    }
    assert found["encoder"].effect == pytest.approx(2, abs=0.01)
    assert found["decoder"].effect == pytest.approx(10, abs=0.01)
    assert found["encoder:decoder"].effect == pytest.approx(4, abs=0.01)
    assert (found["encoder"].from_, found["encoder"].to) == ("vanilla", "encdec")
    assert (found["encoder:decoder"].from_, found["encoder:decoder"].to) == ("vanilla-vanilla", "encdec-encdec")
    assert all(effect.low < effect.effect < effect.high for effect in found.values())


def test_a_factorial_of_any_size_has_an_effect_for_every_other_level() -> None:
    factors = {"encoder": ("a", "b", "c"), "decoder": ("x", "y"), "optimizer.lr": ("0.1", "0.2")}
    levels = {
        f"{one}{two}{three}": (one, two, three)
        for one in factors["encoder"]
        for two in factors["decoder"]
        for three in factors["optimizer.lr"]
    }
    worth = {"a": 0, "b": 1, "c": 5, "x": 0, "y": 20, "0.1": 0, "0.2": 300}
    rows = np.array([[sum(map(worth.get, places)) + seed for places in levels.values()] for seed in range(3)], float)
    found = compare(pd.DataFrame(rows, columns=list(levels)), factors=factors, levels=levels).effects
    by_name = {(effect.factor, effect.from_, effect.to): effect.effect for effect in found}
    assert by_name["encoder", "a", "b"] == pytest.approx(1)
    assert by_name["encoder", "a", "c"] == pytest.approx(5)
    assert by_name["decoder", "x", "y"] == pytest.approx(20)
    assert by_name["optimizer.lr", "0.1", "0.2"] == pytest.approx(300)
    assert by_name["encoder:decoder", "a-x", "c-y"] == 0
    assert len(found) == 2 + 1 + 1 + 2 + 2 + 1


def test_equal_cells_differ_by_nothing_and_p_is_one() -> None:
    column = 0.016 + np.random.default_rng(2).normal(0, 1e-4, 5)
    (pair,) = compare(table(np.stack([column, column], axis=1))).pairs
    assert (pair.difference, pair.low, pair.high, pair.p, pair.p_adjusted, pair.different) == (0, 0, 0, 1, 1, False)
    assert all(effect.p == 1 for effect in grid_of(np.stack([column] * 4, axis=1)).effects)


def test_a_constant_difference_has_no_p_and_is_not_called_different() -> None:
    (pair,) = compare(table(np.array([[1223713.0, 1228385.0]] * 3))).pairs
    assert (pair.difference, pair.low, pair.high, pair.p, pair.different) == (-4672, -4672, -4672, None, False)


def test_rounding_errors_do_not_count_as_spread() -> None:
    (pair,) = compare(table(np.array([[0.1 + 0.2, 0.3], [0.3, 0.3], [0.3, 0.1 + 0.2]]))).pairs
    assert (pair.difference, pair.p) == (0, 1)


def test_one_seed_has_differences_and_no_intervals() -> None:
    found = grid_of(np.array([[1.0, 2.0, 3.0, 5.0]]))
    assert found.cells["vanilla-vanilla"].mean == 1
    assert found.cells["vanilla-vanilla"].low is None
    assert found.pairs[0].difference == -1
    assert not any(pair.different for pair in found.pairs)
    assert {(pair.low, pair.p, pair.p_adjusted) for pair in found.pairs} == {(None, None, None)}
    assert [(effect.effect, effect.low, effect.p) for effect in found.effects] == [
        (2.5, None, None), (1.5, None, None), (1.0, None, None),
    ]  # fmt: skip


def test_an_incomplete_grid_has_no_effects() -> None:
    found = compare(
        table(np.ones((3, 4)) * [1, 2, 3, 4]).drop(columns="encdec-encdec"),
        factors=FACTORS,
        levels={cell: place for cell, place in GRID.items() if cell != "encdec-encdec"},
    )
    assert [(effect.factor, effect.effect, effect.p) for effect in found.effects] == [
        ("encoder", None, None), ("decoder", None, None), ("encoder:decoder", None, None),
    ]  # fmt: skip


def test_figures_from_different_conditions_are_not_compared() -> None:
    rows = np.random.default_rng(3).normal(size=(3, 4))
    grounds = table(np.array([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]))
    found = compare(table(rows), grounds, FACTORS, GRID)
    known = {(pair.a, pair.b) for pair in found.pairs if pair.difference is not None}
    assert known == {("vanilla-vanilla", "vanilla-encdec"), ("encdec-vanilla", "encdec-encdec")}
    assert all(effect.effect is None for effect in found.effects)


def test_a_cell_timed_on_two_machines_has_no_mean() -> None:
    found = compare(table(np.ones((2, 2))), table(np.array([[0.0, 0], [1, 0]])))
    assert found.cells["c0"].mean is None
    assert found.cells["c1"].mean == 1
    assert found.pairs[0].difference is None
    alike = compare(table(np.array([[1.0, 2], [5, 6.5], [3, 4]])), table(np.array([[0.0, 0], [1, 1], [1, 1]])))
    assert alike.pairs[0].n == 3


def test_without_runs_there_are_no_statistics() -> None:
    assert estimate(np.array([np.nan])) == (0, None, None, None, None, None)


def test_the_audit_counts_and_writes_what_it_simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("audit", Path(__file__).parents[1] / "scripts" / "audit.py")
    audit = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "audit", audit)
    spec.loader.exec_module(audit)
    found = audit.count((2, 2), 10, audit.NOISES[0], repeats=40)
    assert found.claims < 0.25
    assert 0.8 < found.cells <= 1
    assert found.power == 1
    monkeypatch.setattr(audit, "DOCUMENT", tmp_path / "trust.md")
    monkeypatch.setattr(audit, "count", lambda *_: found)
    monkeypatch.setattr(sys, "argv", ["audit.py", "--no-tests"])
    audit.DOCUMENT.write_text(f"before\n{audit.BEGIN}\nof yesterday\n{audit.END}\nafter\n", encoding="utf-8")
    assert audit.main() == 0
    text = audit.DOCUMENT.read_text(encoding="utf-8")
    assert "of yesterday" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| 12 cells | 10 |") == 2 * len(audit.NOISES)
