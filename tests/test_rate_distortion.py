"""Rate–distortion curves: which are drawn, in which units, and how far one lies from another."""

import json
from pathlib import Path

import bjontegaard
import numpy as np
import pytest
from runs import write_run

from vae_lab import report, results
from vae_lab.report.findings import findings
from vae_lab.results.figures import NATS
from vae_lab.study.gather import gather
from vae_lab.study.rate_distortion import RateDistortion, _difference, rate_distortion
from vae_lab.study.statistics import analyse, estimate

BETAS = (0.5, 1, 2, 4)
UNITS = dict.fromkeys(("total", "reconstruction", "kl"), NATS)
ELBO = ("objective=elbo", "likelihood.sigma=0.1")
FALLING = np.array([[10.0, 60.0], [20.0, 50.0], [40.0, 45.0]])


def curve(random: np.random.Generator, points: int) -> np.ndarray:
    """A falling curve: (points, 2), rates from some 6 to 45 nats and distortions, in a random order."""
    grown = np.linspace(0, 1, points) + random.uniform(0, 0.8 / points, (2, points))
    return random.permutation(np.column_stack([6 * 7 ** grown[0], 200 - 90 * grown[1]]))


@pytest.mark.parametrize("points", [(2, 3), (4, 4), (7, 5)])
def test_differences_are_those_of_the_package_bjontegaard(points: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(points))
    pairs = [(curve(random, points[0]), curve(random, points[1])) for _ in range(3)]
    size = max(points)
    a, b = (np.stack([np.pad(one, ((0, size - len(one)), (0, 0)), constant_values=np.nan) for one in side])
            for side in zip(*pairs, strict=True))  # fmt: skip
    found = _difference("a", "b", a, b, range(3))
    theirs = []
    for of_a, of_b in pairs:
        # Its distortion is a quality, which grows with the rate.
        (rate_b, quality_b), (rate_a, quality_a) = ((one[one[:, 0].argsort()] * [1, -1]).T for one in (of_b, of_a))
        arguments = (rate_b, quality_b, rate_a, quality_a, "pchip")
        options = {"require_matching_points": False, "min_overlap": 0}
        theirs.append((-bjontegaard.bd_psnr(*arguments, **options), bjontegaard.bd_rate(*arguments, **options)))
    for ours, samples in zip((found.distortion, found.rate), np.array(theirs).T, strict=True):
        expected = estimate(samples)
        assert (ours.n, ours.difference, ours.low, ours.high) == pytest.approx(expected[:2] + expected[3:5])


def test_a_curve_that_is_moved_differs_by_how_far_it_was_moved() -> None:
    higher = _difference("a", "b", FALLING[None] + [0, 3], FALLING[None], [0])
    assert higher.distortion.difference == pytest.approx(3)
    slower = _difference("a", "b", FALLING[None] * [1.25, 1], FALLING[None], [0])
    assert slower.rate.difference == pytest.approx(25)
    assert slower.rates == pytest.approx((12.5, 40))
    same = _difference("a", "b", FALLING[None].repeat(2, 0), FALLING[None].repeat(2, 0), [0, 1])
    assert (same.distortion.difference, same.rate.difference, same.rate.p) == (0, 0, 1)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (FALLING * [10, 1], "seed 0: the curves do not overlap"),
        (FALLING * [1, -1], "the distortion of a curve does not fall as its rate grows"),
        (FALLING[[0, 0, 1]], "the distortion of a curve does not fall"),
        (FALLING * [0, 1], "a rate is not above 0 nats"),
        (np.where(FALLING > 10, np.nan, FALLING), "fewer than two points of a curve are known"),
    ],
)
def test_without_a_common_range_or_a_falling_curve_there_is_no_difference(other: np.ndarray, reason: str) -> None:
    found = _difference("a", "b", other[None], FALLING[None], [0])
    assert (found.distortion.difference, found.rate.difference, found.rates) == (None, None, None)
    assert reason in (found.reason or "")
    one_is_enough = _difference("a", "b", np.stack([FALLING + 1, other]), np.stack([FALLING, FALLING]), [3, 4])
    assert one_is_enough.distortion.n == 1
    assert (one_is_enough.reason or "").startswith("seed 4: ")


def test_curves_that_share_rates_but_no_distortions_differ_in_distortion_alone() -> None:
    found = _difference("a", "b", FALLING[None] + [0, 100], FALLING[None], [0])
    assert found.distortion.difference == pytest.approx(100)
    assert found.rate.difference is None
    assert found.reason == "seed 0: the curves do not overlap"


def write_sweep(folder: Path, *, words: tuple[str, ...] = ELBO, betas: tuple[float, ...] = BETAS, **changes) -> None:
    """Two architectures over β; encdec's distortion is 3 nats, or a tenth, higher at every rate."""
    random = np.random.default_rng(0)
    for encoder, worse in (("vanilla", 0.0), ("encdec", 3.0)):
        for beta in betas:
            for seed in range(3):
                kl = 25 / beta**0.5
                change = worse + 0.1 * random.normal()
                if words == ELBO:
                    test = {"reconstruction": -600 + 40 * beta**0.5 + change, "kl": kl}
                else:
                    test = {"reconstruction": 0.01 * beta**0.5 * (1 + change / 30), "kl": kl / 256}
                losses = results.Test(total=0.0, mse=0.02 * beta**0.5 * (1 + change / 30), **test)
                units = {"terms": UNITS} if words == ELBO else {}
                write_run(folder, encoder, seed=seed, overrides=(*words, f"objective.beta={beta}"), test=losses,
                          pictures=False, **{**units, **changes})  # fmt: skip


def found_in(folder: Path) -> RateDistortion | None:
    return rate_distortion(gather([folder]))


def test_a_sweep_of_beta_has_a_figure_a_table_a_sentence_and_statistics(tmp_path: Path) -> None:
    write_sweep(tmp_path / "x")
    folder = report.write(report.prepare([tmp_path / "x"]))
    loaded = json.loads((folder / "statistics.json").read_text())["rate_distortion"]
    assert loaded["distortion"] == {"figure": "test.reconstruction", "difference_in": "nats"}
    assert [point["beta"] for point in loaded["curves"]["vanilla-vanilla"]] == list(BETAS)
    assert loaded["curves"]["vanilla-vanilla"][0]["rate"]["mean"] == pytest.approx(25 / 0.5**0.5)
    (difference,) = loaded["differences"]
    assert (difference["distortion"]["a"], difference["distortion"]["b"]) == ("encdec-vanilla", "vanilla-vanilla")
    assert difference["distortion"]["difference"] == pytest.approx(3, abs=0.1)
    assert difference["rate"]["low"] < difference["rate"]["difference"] < difference["rate"]["high"]
    page = (folder / "report.md").read_text()
    shown = f"+{difference['distortion']['difference']:.2f}"
    assert f"| encdec-vanilla − vanilla-vanilla | 3 | {shown}" in page
    assert f"Over β, at equal rate the distortion of encdec-vanilla minus that of vanilla-vanilla is {shown}" in page
    svg = (folder / "rate_distortion.svg").read_text()
    for text in ("β 0.5", "nats per image", "encdec-vanilla"):
        assert text in svg
    assert not (folder / "by_objective.beta.png").exists()


def test_where_the_likelihood_hangs_on_beta_the_distortion_is_a_squared_error(tmp_path: Path) -> None:
    """σ of `mse_kl` is β's: distortions in nats would be of different densities. The rate is in nats per image."""
    write_sweep(tmp_path / "x", words=())
    found = found_in(tmp_path / "x")
    assert found is not None
    assert (found.metric, found.is_in_nats) == ("test.reconstruction", False)
    assert found.curves["vanilla-vanilla"][1].rate.mean == pytest.approx(25)
    assert found.differences[0].distortion.difference == pytest.approx(10 * np.log10(1.1), abs=0.03)  # decibels


def test_architectures_of_different_likelihoods_are_compared_by_the_error_of_the_mean(tmp_path: Path) -> None:
    write_sweep(tmp_path / "x")
    write_sweep(tmp_path / "x", words=("objective=elbo", "likelihood.sigma=0.2"), terms=UNITS)
    found = found_in(tmp_path / "x")
    assert found is not None
    assert found.metric == "test.mse"
    assert len(found.curves) == 4


@pytest.mark.parametrize("betas", [(1,), (1, 2)])
def test_fewer_than_three_values_of_beta_are_no_curve(tmp_path: Path, betas: tuple[float, ...]) -> None:
    write_sweep(tmp_path / "x", betas=betas)
    assert found_in(tmp_path / "x") is None


def test_an_architecture_that_was_trained_differently_has_no_curve(tmp_path: Path) -> None:
    write_sweep(tmp_path / "x")
    for beta in BETAS:
        write_run(tmp_path / "x", "mlp", overrides=(*ELBO, f"objective.beta={beta}", "data.num_train=99"), terms=UNITS)
    found = found_in(tmp_path / "x")
    assert found is not None
    assert {*found.curves} == {"vanilla-vanilla, data.num_train 3000", "encdec-vanilla, data.num_train 3000"}


def test_a_difference_that_is_not_shown_is_not_claimed(tmp_path: Path) -> None:
    write_sweep(tmp_path / "x", betas=BETAS)
    study = gather([tmp_path / "x"])
    for record in study.compared:
        object.__setattr__(record.result, "test", record.result.test.model_copy(update={
            "reconstruction": -600 + 40 * float(record.given["objective.beta"]) ** 0.5 + record.result.seed % 2
            * (1 if record.result.encoder == "encdec" else -1)}))  # fmt: skip
    sentence = next(one for one in findings(study, analyse(study)) if one.startswith("Over β"))
    assert sentence.endswith("a difference is not shown.")
