"""Intervals that cover, tests that hold their level, effects that are those of the design."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from vae_lab.study.statistics import MOST_CELLS, Comparison, compare, estimate, holm

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
def test_intervals_cover_the_truth_and_equal_cells_are_rarely_called_different(seeds: int) -> None:
    """Known effects: the encoder adds 4e-5, the decoder nothing, no interaction."""
    random, repeats = np.random.default_rng(seeds), 2000
    means = np.array([0.016, 0.016, 0.01604, 0.01604])
    covered = {"cells": 0, "pairs": 0, "effects": 0}
    wrong = 0
    truth = {"encoder": 4e-5, "decoder": 0.0, "encoder:decoder": 0.0}
    for _ in range(repeats):
        found = grid_of(simulated(random, seeds, means))
        for (cell, interval), mean in zip(found.cells.items(), means, strict=True):
            assert cell in GRID
            covered["cells"] += interval.low <= mean <= interval.high
        for pair in found.pairs:
            true = means[list(GRID).index(pair.a)] - means[list(GRID).index(pair.b)]
            covered["pairs"] += pair.low <= true <= pair.high
        for effect in found.effects:
            covered["effects"] += effect.low <= truth[effect.factor] <= effect.high
        equal = [pair for pair in found.pairs if pair.a.split("-")[0] == pair.b.split("-")[0]]
        wrong += any(pair.different for pair in equal)
    for name, count in (("cells", 4), ("pairs", 6), ("effects", 3)):
        assert 0.93 <= covered[name] / (repeats * count) <= 0.97, name
    assert wrong / repeats <= 0.05


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
    shares = [share_called_different(random, seeds, cells=4, repeats=2000) for seeds in range(3, 11)]
    assert np.mean(shares) <= 0.05


@pytest.mark.parametrize("cells", [2, 12, 20])
def test_the_error_rate_holds_for_other_numbers_of_cells(cells: int) -> None:
    # Of two cells the share is a twentieth exactly: three standard errors of this simulation are allowed.
    share = share_called_different(np.random.default_rng(cells), 5, cells, repeats := 1000)
    assert share <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


def test_pairs_are_those_of_the_paired_t_test() -> None:
    rows = simulated(np.random.default_rng(1), 6, np.array([0.016, 0.0161, 0.0159, 0.0163]))
    found = grid_of(rows)
    raw = []
    for pair in found.pairs:
        a, b = (rows[:, list(GRID).index(cell)] for cell in (pair.a, pair.b))
        reference = stats.ttest_rel(a, b)
        low, high = reference.confidence_interval(0.95)
        assert pair.p == pytest.approx(reference.pvalue)
        assert (pair.low, pair.high) == pytest.approx((low, high))
        assert pair.difference == pytest.approx(np.mean(a - b))
        raw.append(pair.p)
    adjusted = multipletests(raw, method="holm")[1]
    assert [pair.p_adjusted for pair in found.pairs] == pytest.approx(adjusted.tolist())
    assert [pair.different for pair in found.pairs] == (adjusted < 0.05).tolist()


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
    assert by_name["encoder", "a", "b"] == 1
    assert by_name["encoder", "a", "c"] == 5
    assert by_name["decoder", "x", "y"] == 20
    assert by_name["optimizer.lr", "0.1", "0.2"] == 300
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


def test_pairs_use_the_seeds_that_both_have_and_effects_those_that_all_have() -> None:
    rows = np.array([[1.0, 2, 3, 4], [1.1, 2.2, np.nan, 4], [1.2, 2.1, 3.1, 4.3]])
    found = grid_of(rows)
    counts = {(pair.a, pair.b): pair.n for pair in found.pairs}
    assert counts["vanilla-vanilla", "vanilla-encdec"] == 3
    assert counts["vanilla-vanilla", "encdec-vanilla"] == 2
    assert {effect.n for effect in found.effects} == {2}


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
    assert {effect.factor: effect.effect is None for effect in found.effects} == {
        "encoder": True, "decoder": False, "encoder:decoder": True,
    }  # fmt: skip


def test_a_cell_timed_on_two_machines_has_no_mean() -> None:
    found = compare(table(np.ones((2, 2))), table(np.array([[0.0, 0], [1, 0]])))
    assert found.cells["c0"].mean is None
    assert found.cells["c1"].mean == 1
    assert found.pairs[0].n == 1


def test_without_runs_there_are_no_statistics() -> None:
    assert estimate(np.array([np.nan])) == (0, None, None, None, None, None)
