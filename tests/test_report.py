"""The report: its files, tables and sentences, and what it says in the terminal."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from runs import write_grid, write_run

from vae_lab import report, results
from vae_lab.report import tables, terminal
from vae_lab.report.findings import _interaction, add_seeds, findings
from vae_lab.study.gather import gather
from vae_lab.study.statistics import analyse

GRID = ("vanilla-vanilla", "vanilla-encdec", "encdec-vanilla", "encdec-encdec")


def found(folder: Path) -> list[str]:
    study = gather([folder])
    return findings(study, analyse(study))


def table(folder: Path, title: str) -> tables.Table:
    study = gather([folder])
    return next(table for table in tables.tables(study, analyse(study)) if table.title == title)


def written(*folders: Path, out: Path | None = None, all_pictures: bool = False) -> Path:
    return report.write(report.prepare(folders), out, all_pictures=all_pictures)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    ("other", "figures", "record", "sentence"),
    [
        ((), {}, "test.total", "vanilla-vanilla has a test total of 0.0160."),
        (("objective=elbo",), {"elbo": 5.0, "mse": 0.1}, "test.elbo", "objective elbo has the highest ELBO, 5.00, in"),
        (
            ("objective=elbo",),
            {"iwae_10": 3.0, "iwae_100": 4.0, "elbo": 1.0},
            "test.iwae_100",
            "highest IWAE-100, 4.00",
        ),
        (
            ("likelihood=logistic", "objective=elbo"),
            {"elbo": 5.0, "mse": 0.1},
            "test.mse",
            "lowest MSE of the mean, 0.1",
        ),
        (("objective=elbo", "data.num_test=9"), {"elbo": 5.0}, "test.total", "not measured under the same conditions"),
    ],
)
def test_cells_are_compared_by_the_first_figure_that_means_the_same_for_all(
    tmp_path: Path, other: tuple[str, ...], figures: dict[str, float], record: str, sentence: str
) -> None:
    own = {name: value + (1 if name == "mse" else -1) for name, value in figures.items()}
    write_run(tmp_path / "x", pictures=False, test=results.Test(total=0.016, **own))
    if other:
        nats = "levels" if "likelihood=logistic" in other else "real"
        test = results.Test(total=9.0, **figures)
        write_run(tmp_path / "x", overrides=other, pictures=False, test=test, nats=nats)
    assert any(sentence in one for one in found(tmp_path / "x"))
    assert json.loads((written(tmp_path / "x") / "statistics.json").read_text())["record"] == record


def test_cells_are_named_by_what_varies(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "x", seed=seed, overrides=("latent.dim=8", "prior=standard"), total=0.01 + seed / 1000)
        write_run(tmp_path / "x", seed=seed, overrides=("latent.dim=8", "prior=vamp"))
    losses = table(tmp_path / "x", "Test losses")
    assert losses.columns[0] == "cell"
    assert [row[0].text for row in losses.rows] == ["prior standard", "prior vamp"]
    assert table(tmp_path / "x", "Pairs by test total").rows[0][0].text == "prior standard − prior vamp"


# --- Files -------------------------------------------------------------------------------------------------


def test_a_report_leaves_the_files_that_are_promised(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=3, effect=5e-4)
    folder, sentences = written(tmp_path / "x"), found(tmp_path / "x")
    assert folder == tmp_path / "x/report"
    pictures = {"comparison", "predictions", "samples", "cost", "heatmap"}
    pictures |= {f"{cell}_{kind}" for cell in GRID for kind in ("history", "predictions")}
    assert {path.name for path in folder.iterdir()} == {
        "report.md", "report.html", "results.csv", "statistics.json",
        *(f"{name}.{kind}" for name in pictures for kind in ("png", "svg")),
    }  # fmt: skip

    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [row["cell"] for row in rows[::3]] == list(GRID)
    assert (rows[0]["model.parameters"], rows[0]["timing.train_seconds"]) == ("7070", "7")
    assert float(rows[0]["test.total"]) == pytest.approx(0.016, rel=0.05)

    loaded = json.loads((folder / "statistics.json").read_text(), parse_constant=no_constant)
    assert loaded["schema"] == 1
    metric = loaded["metrics"]["test.total"]
    assert list(metric["cells"]) == list(GRID)
    assert set(metric["cells"]["vanilla-vanilla"]) == {"n", "mean", "sd", "low", "high", "iqm"}
    assert set(metric["pairs"][0]) == {
        "a", "b", "n", "difference", "low", "high", "p", "p_adjusted", "different", "q",
    }  # fmt: skip
    assert metric["noise"]["sd"] > 0
    assert [(effect["factor"], effect["from"], effect["to"]) for effect in metric["effects"]] == [
        ("encoder", "vanilla", "encdec"),
        ("decoder", "vanilla", "encdec"),
        ("encoder:decoder", "vanilla-vanilla", "encdec-encdec"),
    ]
    markdown = (folder / "report.md").read_text()
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown):
        assert (folder / name).is_file()
    for cell in GRID:
        assert f"| {cell} |" in markdown
    for sentence in sentences:
        assert f"- {sentence}" in markdown


def test_pictures_of_cells_that_no_longer_exist_are_removed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", "encdec")
    write_run(tmp_path / "x")
    written(tmp_path / "x")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    (tmp_path / "x/report/notes.txt").touch()
    written(tmp_path / "x")
    names = {path.name for path in (tmp_path / "x/report").iterdir()}
    assert "encdec-vanilla_history.png" not in names
    assert {"vanilla-vanilla_history.png", "notes.txt"} <= names


def test_several_sweeps_have_a_report_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    run = write_run(tmp_path / "y", "encdec")
    study = report.prepare([tmp_path / "x", tmp_path / "y"]).study
    assert study.cells == ("vanilla-vanilla", "encdec-vanilla")
    assert written(tmp_path / "x", tmp_path / "y") == tmp_path / "x+y/report"
    assert written(run) == run / "report"


def test_nothing_is_removed_from_a_folder_that_the_user_named(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/loss_history.png").touch()
    assert written(tmp_path / "x", out=tmp_path / "paper") == tmp_path / "paper"
    assert (tmp_path / "paper/loss_history.png").exists()


def test_of_many_cells_only_the_first_and_the_best_have_pictures_by_default(tmp_path: Path) -> None:
    for number in range(14):
        run = write_run(tmp_path / "x", f"e{number:02}", total=0.02 - 0.0001 * number)
        (run / "history.csv").unlink()
    folder = written(tmp_path / "x")
    pictured = {path.name.partition("-")[0] for path in folder.glob("*_predictions.png")}
    assert pictured == {"e00", *(f"e{number:02}" for number in range(3, 14))}
    assert "Pictures are of 12 of the 14 cells" in (folder / "report.md").read_text()
    assert len(list(written(tmp_path / "x", all_pictures=True).glob("*_predictions.png"))) == 14


def harmed(sweep: Path) -> None:
    """A sweep in which all that may go wrong has."""
    write_grid(sweep, seeds=3)
    truncated = sweep / "vanilla-encdec/seed-1/result.json"
    truncated.write_text(truncated.read_text()[:99])
    nan = sweep / "encdec-vanilla/seed-0/result.json"
    loaded = json.loads(nan.read_text())
    loaded["test"]["total"] = float("nan")
    nan.write_text(json.dumps(loaded))
    (sweep / "vanilla-encdec/seed-0/history.csv").write_text("epoch\n")
    (sweep / "vanilla-encdec/seed-0/pictures.npz").write_text("junk")
    write_run(sweep, "encdec", "vanilla", 7, None, status="failed", error="OSError: a | b <script>alert(1)</script>")
    write_run(sweep, "encdec", "encdec", 8, device="Processor B")
    write_run(sweep, "vanilla", "vanilla", 9, epochs=5, config={"trainer.max_epochs": 5}, config_sha256="0" * 64)


def test_a_damaged_sweep_still_has_a_report_that_lists_missing_runs(tmp_path: Path) -> None:
    harmed(tmp_path / "x")
    folder = written(tmp_path / "x")
    loaded = json.loads((folder / "statistics.json").read_text(), parse_constant=no_constant)
    assert loaded["metrics"]["timing.train_seconds"]["cells"]["encdec-encdec"]["mean"] is None
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        for told in (
            "result.json is damaged",
            "test.total is not a finite number",
            "vanilla-vanilla/seed-9 is left out",
            "Processor B",
            "their times are not ranked",
        ):
            assert told in text, (name, told)
        assert "<script>alert" not in text
    assert r"OSError: a \| b" in (folder / "report.md").read_text()


@pytest.mark.parametrize("status", ["failed", None])
def test_a_sweep_in_which_nothing_finished_has_a_report(tmp_path: Path, status: str | None) -> None:
    folder = write_run(tmp_path / "x", total=None, status="failed", error="OSError: no", pictures=False)
    if status is None:
        (folder / "result.json").unlink()
    assert found(tmp_path / "x") == ["No run has a test total: there is nothing to compare."]
    assert "vanilla-vanilla/seed-0" in (written(tmp_path / "x") / "report.html").read_text()


@pytest.mark.parametrize(
    "harm",
    [
        {"test": {"total": 0.1, "elbo": 10**400}},
        {"test": {"total": 1e308, "reconstruction": -1e308}},
        {"encoder": r"$\frac", "cell": r"$\frac-vanilla"},
        {"encoder": "<b>|`", "cell": "_x"},
        {"timing": {}},
    ],
    ids=str,
)
def test_unusual_results_do_not_break_the_report(tmp_path: Path, harm: dict[str, Any]) -> None:
    for seed in range(2):
        write_run(tmp_path / "x", seed=seed)
        folder = write_run(tmp_path / "x", "encdec", seed=seed)
        loaded = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(loaded | harm))
    folder = written(tmp_path / "x")
    json.loads((folder / "statistics.json").read_text(), parse_constant=no_constant)
    assert "could not be drawn" not in (folder / "report.md").read_text()


def test_a_figure_that_cannot_be_drawn_is_reported_and_the_others_are_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x")
    rows = [
        (epoch, "train", 1.0, {"total": 10.0 ** (600 * epoch - 900), "reconstruction": 1.0, "kl": 1.0})
        for epoch in (1, 2)
    ]
    results.write_history(folder, rows)
    place = written(tmp_path / "x")
    assert "could not be drawn" in (place / "report.html").read_text()
    assert (place / "vanilla-vanilla_predictions.png").exists()


def test_long_names_make_short_files(tmp_path: Path) -> None:
    write_run(tmp_path / "x", "e" * 200, cell="e" * 240)
    assert len(list(written(tmp_path / "x").glob("e*_history.png"))) == 1
    folders = [tmp_path / (letter * 90) for letter in "abc"]
    for folder in folders:
        write_run(folder)
    assert written(*folders).is_dir()


@pytest.mark.slow
def test_a_search_with_many_levels_stays_small(tmp_path: Path) -> None:
    for number in range(40):
        overrides = (f"latent.dim={number + 1}", f"optimizer.lr=0.{number + 1:03}")
        run = write_run(tmp_path / "x", overrides=overrides, pictures=False, total=0.016 + 1e-5 * number)
        (run / "history.csv").unlink()
    folder = written(tmp_path / "x")
    assert (folder / "statistics.json").stat().st_size < 400_000
    assert "do not make a complete grid" in (folder / "report.md").read_text()


def test_the_page_loads_nothing_from_other_places(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    page = (written(tmp_path / "x") / "report.html").read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert links
    assert all(link.startswith(("#", "data:")) for link in links), links
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


# --- Tables ------------------------------------------------------------------------------------------------


def test_the_best_value_is_marked_where_it_differs_from_all_others(tmp_path: Path) -> None:
    for seed in range(5):
        for encoder, total in (("vanilla", 0.016), ("encdec", 0.017), ("third", 0.018)):
            write_run(tmp_path / "x", encoder, seed=seed, total=total + 1e-5 * ((seed * 7 + len(encoder)) % 5))
    losses = table(tmp_path / "x", "Test losses")
    place = losses.columns.index("test total")
    assert [row[place].best for row in losses.rows] == [True, False, False]
    assert not any(row[losses.columns.index("test KL")].best for row in losses.rows)  # less is not better


def test_nothing_is_marked_with_one_seed_or_without_a_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "one", "encdec", total=0.5)
    write_grid(tmp_path / "equal", seeds=3)
    for name in ("one", "equal"):
        losses = table(tmp_path / name, "Test losses")
        assert not any(entry.best for row in losses.rows for entry in row)
    assert "with one seed no difference is known" in table(tmp_path / "one", "Test losses").note


def test_figures_have_the_digits_of_their_interval() -> None:
    def cell(mean: float, reach: float) -> Any:
        return tables.Cell(3, mean, reach, mean - reach, mean + reach)

    assert tables.figure("test.total", cell(0.0161234, 0.00007)) == "0.01612 ± 0.00007"
    assert tables.figure("test.total", cell(0.0161234, 0.000018)) == "0.016123 ± 0.000018"
    assert tables.figure("timing.train_seconds", cell(10.21, 0.9)) == "10.2 ± 0.9"
    assert tables.figure("model.parameters", tables.Cell(3, 1223713, 0, 1223713, 1223713)) == "1,223,713"
    assert tables.figure("test.total", tables.Cell(1, 0.0161234, None, None, None)) == "0.0161"
    assert tables.figure("test.total", None) == "—"
    assert (
        tables.figure("test.mutual_information_low", cell(6.90775527, 5e-10)) == "6.9"
    )  # ln 1,000, which it cannot exceed


PUBLISHED = "Beside the published figures"


def test_published_figures_stand_beside_those_of_the_default_grid_only(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=1)
    rows = [[entry.text for entry in row] for row in table(tmp_path / "x", PUBLISHED).rows]
    assert [row[1] for row in rows[::4]] == ["train total", "train recon.", "train KL", "training time, s"]
    assert rows[1][2] == "0.0204"
    assert {row[5] for row in rows} == {"not decided", "on unknown hardware"}
    write_run(tmp_path / "y", overrides=("latent.dim=64",))
    study = gather([tmp_path / "y"])
    assert PUBLISHED not in [one.title for one in tables.tables(study, analyse(study))]


def test_other_threads_make_no_other_model(tmp_path: Path) -> None:
    write_run(tmp_path / "x", overrides=("trainer.threads=1",))
    assert len(table(tmp_path / "x", PUBLISHED).rows) == 4


def test_runs_of_earlier_versions_have_the_published_figures_of_the_default_job(tmp_path: Path) -> None:
    for seed, words in enumerate(((), ("latent.dim=64",))):
        folder = write_run(tmp_path / str(seed), overrides=words)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config.pop("published", None)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    study = gather([tmp_path / "1"])
    assert len(table(tmp_path / "0", PUBLISHED).rows) == 4
    assert PUBLISHED not in [one.title for one in tables.tables(study, analyse(study))]


BOUND = {"where": {"encoder": "vanilla"}, "metric": "test.iwae_100", "value": -228.7, "spread": 0.15, "tolerance": 0.5}


@pytest.mark.parametrize(
    ("bounds", "changes", "verdict"),
    [
        ((-228.7, -228.8, -228.75), {}, "reproduced"),
        ((-228.7, -228.8, -228.75), {"tolerance": None}, "not decided"),
        ((-225.0, -225.1, -225.2), {}, "better"),
        ((-240.0, -240.1, -240.2), {}, "worse"),
        ((-228.0, -227.0, -229.0), {}, "not decided"),  # a wide interval reproduces nothing
        ((-228.7,), {}, "not decided"),
        ((-228.7, -228.8, -228.75), {"note": "of other images"}, "of other images"),
        ((-228.7, -228.8, -228.75), {"metric": "test.iwae_5000"}, "not measured"),
        ((-228.7, -228.8, -228.75), {"metric": "no.such", "spread": None}, "not measured"),
    ],
)
def test_a_verdict_follows_from_the_interval(
    tmp_path: Path, bounds: tuple[float, ...], changes: dict[str, Any], verdict: str
) -> None:
    for seed, bound in enumerate(bounds):
        folder = write_run(tmp_path / "x", seed=seed, test={"total": 1.0, "iwae_100": bound})
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["published"] = {"source": "A & B (2020)", "figures": [BOUND | changes]}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = table(tmp_path / "x", PUBLISHED)
    assert [row[-1].text for row in found.rows] == [verdict]
    assert "A & B (2020)" in found.note
    sentences = " ".join(findings(gather([tmp_path / "x"]), analyse(gather([tmp_path / "x"]))))
    assert (f"is {verdict} for all cells" in sentences) == (verdict in ("reproduced", "better", "worse"))


@pytest.mark.parametrize(
    "damage",
    [
        5,
        {"source": 1},
        {"source": "x", "figures": [{"metric": "a"}]},
        {"source": "x", "figures": [{"metric": "test.total", "value": 1, "spread": 1e200}]},
        {"source": "x", "figures": [{"metric": "test.total", "value": number} for number in range(2000)]},
        [[]],
    ],
    ids=range(6),
)
def test_damaged_published_figures_are_left_out(tmp_path: Path, damage: Any) -> None:
    folder = write_run(tmp_path / "x")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"published": damage}))
    study = gather([tmp_path / "x"])
    assert PUBLISHED not in [one.title for one in tables.tables(study, analyse(study))]


def test_further_metrics_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "x", test={"total": 0.1, "elbo": 812.34, "a_new_one": 3})
    likelihood = table(tmp_path / "x", "Likelihood of the test images")
    assert likelihood.columns == ("encoder-decoder", "runs", "ELBO, nats")
    assert [entry.text for entry in likelihood.rows[0]] == ["vanilla-vanilla", "1", "812.3"]
    others = table(tmp_path / "x", "Further test metrics")
    assert others.columns == ("encoder-decoder", "runs", "a_new_one")
    assert [entry.text for entry in others.rows[0]] == ["vanilla-vanilla", "1", "3.0000"]


def test_a_warning_about_a_model_appears_once_for_all_seeds_of_its_cell(tmp_path: Path) -> None:
    for seed in range(3):
        told = [f"dead units: {seed + 1} channels have the same activation"] if seed else []
        write_run(tmp_path / "x", seed=seed, warnings=told)
    (note,) = (note for note in gather([tmp_path / "x"]).symptoms if "dead units" in note)
    assert note == "vanilla-vanilla, seeds 1, 2: dead units: 2 channels have the same activation."


# --- Findings ----------------------------------------------------------------------------------------------


def test_a_real_difference_is_reported_with_its_interval(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=5, effect=1e-3, noise=1e-5)
    sentences = found(tmp_path / "x")
    assert 3 <= len(sentences) <= 6
    best = sentences[0]
    lead = r"vanilla-(vanilla|encdec), chosen by validation, has .* test total.* 0\.01[56]\d+ ± 0\.0000\d+ over 5 seeds"
    assert re.match(lead, best)
    assert "cannot be told apart from vanilla-" in best  # the decoder does nothing
    encoder = next(sentence for sentence in sentences if "encdec encoder" in sentence)
    assert re.search(r"by \+0\.000999 \(95 % interval \+0\.00098\d to \+0\.00101\d\)", encoder)


def test_equal_cells_are_not_called_different(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=4)
    sentences = found(tmp_path / "x")
    assert "cannot be told apart from" in sentences[0]
    assert not any("differs from every" in sentence for sentence in sentences)


def test_a_copy_under_another_name_gives_the_same_results(tmp_path: Path) -> None:
    for seed in range(3):
        for encoder in ("vanilla", "copy"):
            write_run(tmp_path / "x", encoder, seed=seed, total=0.016 + 1e-4 * seed)
    study = gather([tmp_path / "x"])
    (pair,) = analyse(study)["test.total"].pairs
    assert (pair.difference, pair.p) == (0, 1)
    sentences = found(tmp_path / "x")
    assert "copy-vanilla is the same in every seed" in sentences[0]
    assert any("the two give the same results" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (1e-3, "worse; it is also the cheaper one"),
        (-1e-3, "better, and no more cost is shown"),
        (0.0, "neither better nor worse"),
    ],
)
def test_the_report_says_whether_an_encoder_pays_for_its_cost(tmp_path: Path, effect: float, verdict: str) -> None:
    write_grid(tmp_path / "x", seeds=5, effect=effect, noise=2e-5)  # here the encdec encoder is the smaller one
    assert verdict in next(sentence for sentence in found(tmp_path / "x") if "encdec encoder" in sentence)


def test_a_more_expensive_encoder_that_is_worse_does_not_pay(tmp_path: Path) -> None:
    for seed in range(5):
        for encoder, total in (("vanilla", 0.016), ("very_large_one", 0.017)):
            write_run(tmp_path / "x", encoder, seed=seed, total=total + 1e-5 * ((3 * seed + len(encoder)) % 5))
    sentence = next(sentence for sentence in found(tmp_path / "x") if "very_large_one encoder" in sentence)
    assert "the more complex one does not pay" in sentence
    assert "+7,000 parameters" in sentence


def test_with_one_seed_no_difference_is_real_and_a_command_to_add_seeds_is_given(tmp_path: Path) -> None:
    write_run(tmp_path / "my study", overrides=("+trainer.gradient_clip_val=1.0", "latent.dim=64"))
    write_run(tmp_path / "my study", "encdec", overrides=("+trainer.gradient_clip_val=1.0", "latent.dim=64"))
    sentences = found(tmp_path / "my study")
    assert "No difference can be called real with one seed" in sentences[0]
    assert sentences[1].endswith(
        "`python train.py -m encoder=vanilla,encdec decoder=vanilla +trainer.gradient_clip_val=1.0 latent.dim=64 "
        "seed=0,1,2,3,4 'name=my study'`"
    )
    assert not any("shown" in sentence or "differs from every" in sentence for sentence in sentences)


def test_the_command_repeats_the_overrides_of_the_runs(tmp_path: Path) -> None:
    words = ("optimizer.lr=0.005", "optimizer.lr=0.01")  # an experiment's, and what was typed after it
    folder = write_run(tmp_path / "x", overrides=words)
    (folder / ".hydra").mkdir()
    sources = [{"path": "/conf", "provider": "main"}, {"path": "/my conf", "provider": "command-line"}]
    (folder / ".hydra/hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"config_sources": sources}}}))
    assert add_seeds(gather([tmp_path / "x"])) == (
        "python train.py -m --config-dir '/my conf' encoder=vanilla decoder=vanilla optimizer.lr=0.01 "
        "seed=0,1,2,3,4 name=x"
    )
    write_run(tmp_path / "y")
    write_run(tmp_path / "y", overrides=("latent.dim=64",))
    assert "latent.dim=256,64 seed" in (add_seeds(gather([tmp_path / "y"])) or "")
    write_run(tmp_path / "z")
    write_run(tmp_path / "z", "encdec", "encdec")
    assert add_seeds(gather([tmp_path / "z"])) is None


def test_the_command_sweeps_the_same_keys(tmp_path: Path) -> None:
    for lr in ("0.001", "0.01"):
        write_run(tmp_path / "x", overrides=(f"optimizer.lr={lr}",))
    assert add_seeds(gather([tmp_path / "x"]), [3, 4]) == (
        "python train.py -m encoder=vanilla decoder=vanilla optimizer.lr=0.001,0.01 seed=3,4 name=x"
    )


@pytest.mark.parametrize(
    ("swap", "words"),
    [
        (0.0, "That the effect of the encoder depends on the optimizer.lr is not shown (interaction "),
        (2e-3, "Encoder and optimizer.lr do not simply add up: the test total of encdec-0.01 is off by −0.00"),
    ],
)
def test_whether_another_learning_rate_changes_the_answer(tmp_path: Path, swap: float, words: str) -> None:
    for seed in range(5):
        for encoder, more in (("vanilla", 0.0), ("encdec", 1e-3)):
            for lr, at_this in (("0.001", 0.0), ("0.01", -swap)):
                noise = 1e-5 * ((3 * seed + len(encoder + lr)) % 5)
                total = 0.016 + (more + at_this if encoder == "encdec" else 0) + noise
                write_run(tmp_path / "x", encoder, seed=seed, total=total, overrides=(f"optimizer.lr={lr}",))
    sentences = found(tmp_path / "x")
    assert any(words in sentence for sentence in sentences), sentences


def test_cells_are_ranked_by_the_means_that_are_shown(tmp_path: Path) -> None:
    """The later seeds, which only one cell has, were hard ones."""
    for seed in range(6):
        write_run(tmp_path / "x", seed=seed, total=0.016 + 1e-5 * (seed % 3) + 0.003 * (seed > 2))
    for seed in range(3):
        write_run(tmp_path / "x", "encdec", seed=seed, total=0.0162 + 1.1e-5 * seed)
    best = found(tmp_path / "x")[0]
    assert best.startswith("encdec-vanilla, chosen by validation, has the lowest test total, 0.016211 ± 0.000027 over")
    assert "it cannot be told apart from vanilla-vanilla: vanilla-vanilla is 0.0013 higher" in best
    losses = table(tmp_path / "x", "Test losses")
    assert not any(row[losses.columns.index("test total")].best for row in losses.rows)


def test_a_constant_difference_is_no_missing_run(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path / "x", seed=seed, total=0.25 + seed)
        write_run(tmp_path / "x", "encdec", seed=seed, total=0.5 + seed)
    assert "in every seed, which leaves nothing to test" in found(tmp_path / "x")[0]


@pytest.mark.parametrize(("both", "words"), [(-0.003, "+0.00100"), (-0.005, "−0.00100")])
def test_an_interaction_is_reported_with_its_direction(tmp_path: Path, both: float, words: str) -> None:
    for seed in range(5):
        for encoder, decoder, more in (
            ("vanilla", "vanilla", 0.0),
            ("encdec", "vanilla", -0.002),
            ("vanilla", "encdec", -0.002),
            ("encdec", "encdec", both),
        ):
            noise = 1e-6 * ((3 * seed + len(encoder + decoder)) % 5)
            write_run(tmp_path / "x", encoder, decoder, seed, 0.016 + more + noise)
    study = gather([tmp_path / "x"])
    sentence = " ".join(_interaction(study, analyse(study)))
    assert f"the test total of encdec-encdec is off by {words}" in sentence
    assert "from what the two steps from vanilla-vanilla, taken one at a time, add up to" in sentence


@pytest.mark.parametrize(
    ("flops", "parameters", "seconds", "verdict"),
    [
        (-(10**6), 899_000, 13.0, "better."),
        (10**6, 10, 0.0, "better, and that is what the cost buys"),
        (1000, 10, 0.0, "better, and no more cost is shown"),  # as a match leaves it
        (-(10**6), -(10**5), -1.0, "better, and no more cost is shown"),
    ],
)
def test_cost_is_reported_correctly(tmp_path: Path, flops: int, parameters: int, seconds: float, verdict: str) -> None:
    for seed in range(4):
        noise = 1e-5 * ((3 * seed) % 5)
        for encoder, sign in (("vanilla", 0), ("encdec", 1)):
            write_run(
                tmp_path / "x", encoder, seed=seed, total=0.016 - 1e-3 * sign + noise * (1 + sign),
                seconds=20 + sign * seconds + 0.01 * ((seed * 3 + sign) % 4),
                model={"parameters": 10**6 + sign * parameters, "flops_per_image": 10**7 + sign * flops},
            )  # fmt: skip
    sentence = next(sentence for sentence in found(tmp_path / "x") if "encdec encoder" in sentence)
    assert sentence.endswith(f"{verdict.rstrip('.')}."), sentence


def test_seeds_that_cells_do_not_share_make_no_pairs(tmp_path: Path) -> None:
    write_run(tmp_path / "x", seed=0)
    write_run(tmp_path / "x", "encdec", seed=1, total=0.5)
    sentences = found(tmp_path / "x")
    assert "No difference can be called real with one seed" in sentences[0]
    assert "over 2 seeds" not in " ".join(sentences)
    assert "add seeds" in sentences[1]


def test_a_cell_that_diverges_is_an_outcome(tmp_path: Path) -> None:
    for seed in range(3):
        for encoder, more in (("vanilla", 0.0), ("encdec", 1e-3), ("third", 2e-3)):
            for lr in ("0.001", "0.01"):
                total = (
                    None
                    if (encoder, lr) == ("third", "0.01")
                    else 0.016 + more + 1e-5 * ((seed * 3 + len(encoder)) % 4)
                )
                status = {"status": "failed", "error": "LossError: not finite"} if total is None else {}
                write_run(tmp_path / "x", encoder, seed=seed, total=total, overrides=(f"optimizer.lr={lr}",), **status)
    sentences = found(tmp_path / "x")
    words = (
        "Runs failed, 3 of third-vanilla, optimizer.lr 0.01: means are over the others, which flatters cells that fail."
    )
    assert words in sentences, sentences
    assert not any("depends on" in sentence for sentence in sentences)  # of an incomplete grid


def test_a_seed_far_from_its_others_is_named_and_nothing_is_claimed_about_its_cell(tmp_path: Path) -> None:
    for seed in range(8):
        for encoder, noise in (("vanilla", 1e-6), ("encdec", 1e-6), ("shaky", 1e-6 if seed != 6 else 1e-2)):
            total = 0.016 + 1e-4 * (encoder == "encdec") + noise * ((seed * 5 + len(encoder)) % 4 + 1)
            write_run(tmp_path / "x", encoder, seed=seed, total=total)
    told = " ".join(found(tmp_path / "x"))
    assert "shaky-vanilla varies" in told
    assert "its seed 6 lies far from its other seeds: nothing about it is tested" in told
    pairs = table(tmp_path / "x", "Pairs by test total")
    assert [row[-1].text for row in pairs.rows if "shaky" in row[0].text] == ["not shown", "not shown"]


def test_what_more_seeds_would_show_is_said(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=5)
    told = " ".join(found(tmp_path / "x"))
    assert re.search(
        r"5 seeds find a difference of 0\.0\d+ in 80 % of studies; for the largest one seen, .* that takes", told
    )


def test_the_best_number_at_the_end_of_its_range_is_told(tmp_path: Path) -> None:
    for seed in range(3):
        for index, lr in enumerate(("0.001", "0.003", "0.01")):
            total = 0.016 - 1e-3 * index + 1e-6 * ((seed * 2 + index) % 3)
            write_run(tmp_path / "x", seed=seed, total=total, overrides=(f"optimizer.lr={lr}",))
    assert "The optimizer.lr of that cell, 0.01, is the largest that was tried: the best may lie beyond." in found(
        tmp_path / "x"
    )


def test_a_trade_off_between_families_of_figures_is_told(tmp_path: Path) -> None:
    for seed in range(5):
        for encoder, better in (("vanilla", 0), ("encdec", 1)):
            noise = (seed * 3 + better) % 5
            test = results.Test(
                total=0.016 + 1e-5 * noise, mse=0.01 + 1e-3 * better + 1e-6 * noise,
                fid_samples=40 - 9.0 * better + 0.01 * ((seed * 2 + better) % 5),
            )  # fmt: skip
            write_run(tmp_path / "x", encoder, seed=seed, test=test)
    sentence = next(one for one in found(tmp_path / "x") if "encdec encoder" in one)
    assert "neither better nor worse is shown" in sentence or "no gain is shown" in sentence
    assert "exploratory: worse reconstructions (MSE of the mean" in sentence
    assert "and better samples (" in sentence


def test_totals_under_different_betas_are_not_compared_and_reconstructions_are(tmp_path: Path) -> None:
    for seed in range(3):
        for beta, total in (("0.01", 0.016), ("0.1", 0.03)):
            write_run(
                tmp_path / "x", seed=seed, total=total + 1e-5 * (seed * 7 % 5), overrides=(f"objective.beta={beta}",)
            )
    study = gather([tmp_path / "x"])
    statistics = analyse(study)
    assert statistics["test.total"].effects[0].effect is None
    assert statistics["test.reconstruction"].effects[0].effect is not None
    assert "none is called the best" in found(tmp_path / "x")[0]
    assert any("Totals under different objectives" in note for note in study.notes)


def test_cells_of_other_conditions_are_not_ranked(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "x", seed=seed)
        write_run(tmp_path / "x", "encdec", seed=seed, config={"data.num_train": 1000}, config_sha256="0" * 64)
    sentences = found(tmp_path / "x")
    assert "none is called the best" in sentences[0]
    assert not any("lowest" in sentence or "fastest" in sentence for sentence in sentences)


# --- Terminal ----------------------------------------------------------------------------------------------


def shown(folder: Path, width: int = 80) -> list[list[str]]:
    study = gather([folder])
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal.summary(study, analyse(study) if study.compared else {}))
    text: str = console.file.getvalue()
    return [line.split() for line in text.splitlines()]


def test_published_figures_stand_beside_ours_in_80_columns(tmp_path: Path) -> None:
    rows = {
        "vanilla-vanilla": ["0.4128", "0.0149", "0.0190", "36.06"],
        "encdec-vanilla": ["0.4147", "0.0151", "0.0192", "26.16"],
        "vanilla-encdec": ["0.4082", "0.0163", "0.0204", "28.15"],
        "encdec-encdec": ["0.4077", "0.0168", "0.0209", "31.67"],
    }
    for cell in rows:
        write_run(tmp_path / "x", *cell.split("-"), total=0.0151)
    lines = shown(tmp_path / "x")
    for cell, published in rows.items():
        assert [cell, "0.3775", "0.0113", "0.0151", "7.00", *published] in lines


def test_seeds_are_averaged_with_the_interval_of_the_test_total_in_80_columns(tmp_path: Path) -> None:
    for seed, total in enumerate((0.02, 0.03, 0.04)):
        write_run(tmp_path / "x", seed=seed, total=total)
    lines = shown(tmp_path / "x")
    assert ["vanilla-vanilla", "0.7500", "0.0225", "0.0300", "7.00", "0.030", "±", "0.025", "0.0190"] in lines


def test_a_failed_run_leaves_a_hole(tmp_path: Path) -> None:
    write_run(tmp_path / "x", "mine", total=None, status="failed", error="OSError: no", pictures=False)
    assert ["mine-vanilla", "—", "—", "—", "—"] in shown(tmp_path / "x")
    write_run(tmp_path / "x", "mine", seed=1, total=0.02)
    write_run(tmp_path / "x", "mine", seed=2, total=0.02)
    write_run(tmp_path / "x", "vanilla", seed=0, total=0.02)
    assert ["(2", "of", "3", "seeds)"] in shown(tmp_path / "x")


def test_brackets_in_an_error_are_printed_as_they_are() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(terminal.failures([("outputs/[x]", "RuntimeError: [/tmp/x] [enforce fail]")]))
    assert "[/tmp/x] [enforce fail]" in console.file.getvalue()
    assert "outputs/[x]" in console.file.getvalue()


# --- Samplers ----------------------------------------------------------------------------------------------


def write_sampled(sweep: Path, encoder: str, distances: Sequence[tuple[float, float, float] | None]) -> None:
    """A run for each seed, with its Fréchet distances of samples of prior, Gaussian, mixture; None for an old one."""
    for seed, found in enumerate(distances):
        names = ("fid_samples", "fid_samples_gaussian", "fid_samples_mixture")
        figures = dict(zip(names, found or (50.0,), strict=False))
        write_run(sweep, encoder, seed=seed, pictures=False, test=results.Test(total=0.016 + seed / 1e4, **figures))


def test_samplers_are_compared_within_each_model(tmp_path: Path) -> None:
    # The models of the seeds are far apart, so that only the differences within each tell.
    write_sampled(tmp_path / "x", "vanilla", [(30.0, 20.0, 19.0), (50.0, 40.4, 39.0), (70.0, 59.6, 62.0)])
    write_sampled(tmp_path / "x", "encdec", [None, None, None])
    study = gather([tmp_path / "x"])
    (gaussian, mixture, _) = tables.sampled(study)["vanilla-vanilla"]
    assert (gaussian.a, gaussian.b, gaussian.n, gaussian.different) == ("Gaussian", "prior", 3, True)
    assert gaussian.difference == pytest.approx(-10)
    assert gaussian.low is not None
    assert gaussian.low == pytest.approx(-10 - 4.3027 * 0.4 / 3**0.5, abs=1e-3)
    assert mixture.p_adjusted == pytest.approx(2 * (mixture.p or 0), abs=1e-9)  # the second of three
    shown = table(tmp_path / "x", "What samples are drawn from")
    rows = {row[0].text: row for row in shown.rows}
    assert shown.columns[2:6] == ("prior", "Gaussian", "mixture", "Gaussian − prior")
    assert rows["vanilla-vanilla"][5].best
    assert rows["vanilla-vanilla"][5].text == "−10.0 (−11.0 to −9.0)"
    assert [entry.text for entry in rows["encdec-vanilla"][2:]] == ["50.00", *["—"] * 5]


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ([40.0, 41.0, 42.0], "The codes are not spread as the prior is: samples of a mixture fitted to the training "
         "codes are closer to the test images than samples of the prior (Fréchet distance −41.0, 95 % interval −43.5 "
         "to −38.5)."),
        ([-40.0, -41.0, -42.0], "Samples of a mixture fitted to the training codes are further from the test images "
         "than samples of the prior."),
        ([40.0, -41.0, 5.0], "That samples of a mixture fitted to the training codes are any closer to the test images "
         "than samples of the prior is not shown."),
        ([40.0], None),
    ],
    ids=["closer", "further", "neither", "one seed"],
)  # fmt: skip
def test_a_conclusion_about_the_prior_is_drawn_only_where_the_seeds_show_it(
    tmp_path: Path, gains: list[float], sentence: str | None
) -> None:
    write_sampled(tmp_path / "x", "vanilla", [(60.0 + gain, 61.0, 60.0) for gain in gains])
    told = [one for one in found(tmp_path / "x") if "prior" in one]
    assert told == ([sentence] if sentence else [])


def test_the_files_are_complete_before_anything_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before: `vae-lab report … | head` wrote no report, since it ended at the first table."""
    write_run(tmp_path / "x", pictures=False)

    def closed(self: Console, *objects: object, **settings: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Console, "print", closed)
    with pytest.raises(BrokenPipeError):
        terminal.show_report([tmp_path / "x"])
    assert {path.name for path in (tmp_path / "x/report").iterdir()} >= {"report.html", "report.md", "results.csv"}


def test_the_docs_compare_an_older_report_and_readme_says_what_comes_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Path(__file__).parents[1]
    code = re.search(r"```python\n(.*?)```", (project / "docs" / "report.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(project)
    space: dict[str, Any] = {}
    exec(code[1], space)
    assert "Pair(a='vanilla-vanilla'" in capsys.readouterr().out
    record, readme = space["found"]["test.total"], (project / "README.md").read_text(encoding="utf-8")
    pair = record.pair("vanilla-encdec", "vanilla-vanilla")
    assert f"{pair.difference:.5f} higher ({pair.low:.5f} to {pair.high:.5f}, adjusted p = {pair.p_adjusted:.3f})" in (
        " ".join(readme.split())
    )
    samples = next(one for one in space["found"]["test.fid_samples"].effects if one.factor == "decoder")
    size = f"Fréchet distance {samples.effect:.1f}, {samples.low:.1f} to {samples.high:.1f}".replace("-", "−")
    assert size in " ".join(readme.split())
    assert samples.different
