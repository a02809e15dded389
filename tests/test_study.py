"""Run folders to a study: order, factors, holes, and what cannot be compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import ENVIRONMENT, write_grid, write_run

from vae_lab import results
from vae_lab.report import pages
from vae_lab.results import Timing
from vae_lab.study.gather import gather


def test_a_sweep_is_read_in_its_own_order_with_its_factors(tmp_path: Path) -> None:
    sweep = tmp_path / "x"
    position = 0
    for encoder in ("vanilla", "encdec"):
        for lr in ("0.01", "1e-3"):
            for seed in (1, 0):
                position += 1
                write_run(sweep, encoder, seed=seed, overrides=(f"optimizer.lr={lr}",), position=position)
    study = gather([sweep])
    suffixes = ("__optimizer.lr-0.01", "__optimizer.lr-1e-3")
    assert study.cells == tuple(f"{side}-vanilla{suffix}" for side in ("vanilla", "encdec") for suffix in suffixes)
    assert dict(study.factors) == {"encoder": ("vanilla", "encdec"), "optimizer.lr": ("0.01", "0.001")}
    assert study.levels[study.cells[1]] == ("vanilla", "0.001")
    assert study.label(study.cells[1]) == "vanilla-vanilla, optimizer.lr 0.001"
    assert study.seeds == (0, 1)
    assert (study.holes, study.notes) == ((), ())


def test_without_positions_the_default_variants_come_first(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=1)
    assert gather([tmp_path / "x"]).cells == (
        "vanilla-vanilla", "vanilla-encdec", "encdec-vanilla", "encdec-encdec",
    )  # fmt: skip


def test_a_key_that_only_some_runs_override_has_the_configurations_level_in_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    write_run(tmp_path / "x", overrides=("latent.dim=64",))
    assert dict(gather([tmp_path / "x"]).factors) == {"latent.dim": ("256", "64")}


def test_folders_of_sweeps_cells_and_runs_are_accepted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", seed=4)
    write_run(tmp_path / "x", seed=5)
    assert gather([folder]).seeds == (4,)
    assert gather([folder.parent]).seeds == gather([tmp_path]).seeds == (4, 5)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_runs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"there (is no folder|are no runs under) .*{name}"):
        gather([tmp_path / name])


def test_missing_failed_damaged_and_nan_runs_are_listed(tmp_path: Path) -> None:
    sweep = tmp_path / "x"
    write_grid(sweep, seeds=2)
    shutil.rmtree(sweep / "vanilla-vanilla/seed-1")
    damaged = sweep / "vanilla-encdec/seed-0/result.json"
    damaged.write_text(damaged.read_text()[:200])
    (sweep / "vanilla-encdec/seed-1/result.json").unlink()
    shutil.rmtree(sweep / "encdec-vanilla/seed-0")
    write_run(sweep, "encdec", "vanilla", 0, None, status="failed", error="LossError: not finite")
    nan = sweep / "encdec-encdec/seed-1/result.json"
    loaded = json.loads(nan.read_text())
    loaded["test"]["total"] = loaded["test"]["elbo"] = float("nan")
    nan.write_text(json.dumps(loaded))
    study = gather([sweep])
    assert {hole.run: hole.reason for hole in study.holes} == {
        "vanilla-vanilla/seed-1": "missing: other cells have this seed",
        "vanilla-encdec/seed-0": f"result.json is damaged: {damaged}",
        "vanilla-encdec/seed-1": "has no result.json: it did not end",
        "encdec-vanilla/seed-0": "LossError: not finite",
        "encdec-encdec/seed-1": "finished, but test.total is not a finite number",
    }
    values = study.values("test.total")
    assert values["encdec-encdec"].isna().tolist() == [False, True]
    assert "test.elbo" not in study.metrics


def test_a_run_that_differs_from_the_other_seeds_of_its_cell_is_left_out_with_a_note(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "x", seed=seed)
    write_run(tmp_path / "x", seed=2, config={"trainer.max_epochs": 5}, epochs=5, config_sha256="0" * 64)
    study = gather([tmp_path / "x"])
    assert [record.result.seed for record in study.compared] == [0, 1]
    assert study.notes == (
        "vanilla-vanilla/seed-2 is left out: it differs from the other runs of its cell "
        "(trainer.max_epochs is 5, not 10).",
    )


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"data.num_train": 1000}, "data.num_train 1000"),
        ({"data.dataset": "torchvision.datasets.MNIST"}, "data.dataset torchvision.datasets.MNIST"),
        ({"objective.beta": 0.5}, "objective.beta 0.5"),
    ],
)
def test_cells_that_differ_in_keys_that_were_not_swept_are_not_compared(
    tmp_path: Path, config: dict[str, object], told: str
) -> None:
    write_run(tmp_path / "x")
    write_run(tmp_path / "x", "encdec", config=config, config_sha256="0" * 64)
    study = gather([tmp_path / "x"])
    assert len(set(study.grounds("test.total").to_numpy()[0])) == 2
    assert len(set(study.grounds("model.parameters").to_numpy()[0])) == 1
    (note,) = study.notes
    assert told in note
    assert "not compared" in note


def test_the_number_of_epochs_reached_is_a_result_and_no_condition(tmp_path: Path) -> None:
    """Seen before: with early stopping half of the seeds were left out, and no cells were compared."""
    for seed, (one, other) in enumerate([(4, 7), (7, 10), (10, 4)]):
        write_run(tmp_path / "x", seed=seed, epochs=one)
        write_run(tmp_path / "x", "encdec", seed=seed, epochs=other)
    study = gather([tmp_path / "x"])
    assert len(study.compared) == 6
    assert study.comparable("test.total")
    assert not study.notes


def test_different_lengths_of_training_that_were_not_swept_prevent_comparison(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    write_run(tmp_path / "x", "encdec", config={"trainer.max_epochs": 5}, epochs=5)
    assert "trainer.max_epochs 5" in gather([tmp_path / "x"]).notes[0]


def test_cells_that_differ_in_swept_keys_are_compared(tmp_path: Path) -> None:
    for epochs in (5, 10):
        write_run(tmp_path / "x", overrides=(f"trainer.max_epochs={epochs}",), epochs=epochs)
    for images in (1000, 3000):
        write_run(tmp_path / "y", overrides=(f"data.num_train={images}",))
    for name in ("x", "y"):
        study = gather([tmp_path / name])
        assert len(set(study.grounds("test.total").to_numpy()[0])) == 1
        assert not study.notes


IN_NATS = dict.fromkeys(("total", "reconstruction", "kl"), "nats per image")


def test_totals_with_penalties_of_different_posteriors_are_not_compared(tmp_path: Path) -> None:
    terms = dict.fromkeys(("total", "reconstruction", "kl"), "nats per image")
    for latent in ("map", "fsq", "vq", "lfq"):
        penalty = {"commitment": "nats per image"} if latent in ("vq", "lfq") else {}
        write_run(tmp_path / "x", overrides=(f"latent={latent}", "objective=elbo"), terms=terms | penalty)
    study = gather([tmp_path / "x"])
    assert not study.comparable("test.total")
    assert study.comparable("test.reconstruction")
    plain = [cell for cell in study.cells if "map" in cell or "fsq" in cell]
    assert study.comparable("test.total", plain)


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({"terms": IN_NATS}, {"test.elbo", "test.mse", "timing.train_seconds"}),
        ({}, {"test.elbo", "test.mse", "timing.train_seconds", "test.reconstruction", "test.kl"}),
        ({"terms": IN_NATS, "nats": "binary"}, {"test.mse", "timing.train_seconds"}),
        ({"terms": IN_NATS, "nats": None}, {"test.mse", "timing.train_seconds"}),
    ],
    ids=["other units", "equal units", "other data", "no likelihood"],
)
def test_under_other_objectives_only_figures_of_the_same_meaning_are_compared(
    tmp_path: Path, changes: dict[str, Any], comparable: set[str]
) -> None:
    test = results.Test(total=0.016, reconstruction=0.012, kl=0.4, elbo=-200.0, mse=0.01)
    write_run(tmp_path / "x", overrides=("objective=mse_kl",), test=test)
    write_run(tmp_path / "x", overrides=("objective=elbo",), test=test, **changes)
    study = gather([tmp_path / "x"])
    assert [*study.factors] == ["objective"]
    figures = {"test.total", "test.reconstruction", "test.kl", "test.elbo", "test.mse", "timing.train_seconds"}
    assert {name for name in figures if study.comparable(name)} == comparable
    assert any("Totals under different objectives" in note for note in study.notes)


def test_binary_and_grey_test_images_are_never_compared(tmp_path: Path) -> None:
    for binarize in ("none", "dynamic"):
        write_run(tmp_path / "x", overrides=(f"data.binarize={binarize}",))
    assert not gather([tmp_path / "x"]).comparable("test.total")


def test_keys_confounded_with_the_networks_do_not_count_as_swept(tmp_path: Path) -> None:
    write_run(tmp_path / "x", overrides=("trainer.max_epochs=5",), epochs=5)
    write_run(tmp_path / "x", "encdec", overrides=("trainer.max_epochs=20", "data.num_train=1000"), epochs=20)
    study = gather([tmp_path / "x"])
    assert not study.comparable("test.total")
    assert "trainer.max_epochs 20" in study.notes[0]


def test_further_differences_between_cells_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path / "x", overrides=("optimizer.lr=0.5",))
    write_run(tmp_path / "x", "encdec")
    study = gather([tmp_path / "x"])
    assert study.comparable("test.total")
    (note,) = study.notes
    assert note.startswith("Cells differ in more than their networks and what was swept")
    assert "optimizer.lr 0.5" in note


def test_a_sweep_may_have_the_name_of_a_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "seed-7")
    write_run(tmp_path / "seed-study", "encdec")
    assert gather([tmp_path / "seed-7"]).cells == ("vanilla-vanilla",)
    assert gather([tmp_path / "seed-study"]).cells == ("encdec-vanilla",)


def test_other_test_images_are_never_compared(tmp_path: Path) -> None:
    for images in (500, 1000):
        write_run(tmp_path / "x", overrides=(f"data.num_test={images}",))
    study = gather([tmp_path / "x"])
    assert len(set(study.grounds("test.total").to_numpy()[0])) == 2
    assert "data.num_test 500" in study.notes[0]


def test_times_of_other_hardware_are_never_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    write_run(tmp_path / "x", "encdec", device="Processor B")
    study = gather([tmp_path / "x"])
    assert len(set(study.grounds("timing.train_seconds").to_numpy()[0])) == 2
    assert len(set(study.grounds("test.total").to_numpy()[0])) == 1
    assert "Processor B, 2 threads: 1 run" in study.notes[0]


def test_threads_that_were_swept_are_compared(tmp_path: Path) -> None:
    for threads in (1, 2):
        environment = ENVIRONMENT.model_copy(update={"threads": threads})
        write_run(tmp_path / "x", overrides=(f"trainer.threads={threads}",), environment=environment)
        write_run(tmp_path / "y", ("vanilla", "encdec")[threads - 1], environment=environment)
    swept, not_swept = (gather([tmp_path / name]).grounds("timing.train_seconds").to_numpy()[0] for name in ("x", "y"))
    assert len(set(swept)) == 1
    assert len(set(not_swept)) == 2


def test_a_missing_configuration_is_noted_and_assumed_to_equal_the_others(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    (write_run(tmp_path / "x", "encdec") / "config.yaml").unlink()
    study = gather([tmp_path / "x"])
    assert len(set(study.grounds("test.total").to_numpy()[0])) == 1
    assert "config.yaml is missing or damaged for encdec-vanilla" in study.notes[0]


def test_sweeps_are_merged_by_configuration(tmp_path: Path) -> None:
    write_run(tmp_path / "x", seed=0)
    write_run(tmp_path / "y", seed=1)
    write_run(tmp_path / "y", seed=0)
    study = gather([tmp_path / "x", tmp_path / "y"])
    assert study.cells == ("vanilla-vanilla",)
    assert [(record.sweep, record.result.seed) for record in study.compared] == [("x", 0), ("y", 1)]
    assert study.notes == ("vanilla-vanilla/seed-0 is in x and in y; the former is used.",)


def test_cells_of_one_name_and_two_configurations_get_different_names(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    write_run(tmp_path / "y", config={"latent.dim": 64}, config_sha256="0" * 64)
    assert gather([tmp_path / "x", tmp_path / "y"]).cells == ("vanilla-vanilla@x", "vanilla-vanilla@y")


def test_totals_of_other_latent_sizes_are_compared_at_one_sigma(tmp_path: Path) -> None:
    for size in (32, 256):
        write_run(tmp_path / "beta", overrides=(f"latent.dim={size}",))
        write_run(tmp_path / "sigma", overrides=(f"latent.dim={size}", "objective.sigma=0.1"))
    by_beta, by_sigma = gather([tmp_path / "beta"]), gather([tmp_path / "sigma"])
    assert not by_beta.comparable("test.total")
    assert by_sigma.comparable("test.total")
    assert by_sigma.notes == ()


def test_cells_whose_seeds_change_other_things_are_not_compared(tmp_path: Path) -> None:
    for source in ("init", "order", "[init,order,noise]"):
        for seed in range(4):
            write_run(tmp_path / "x", seed=seed, total=0.016 + seed * 1e-4, overrides=(f"vary={source}",))
    study = gather([tmp_path / "x"])
    assert not study.comparable("test.total", study.cells[:2])
    assert "vary init" in study.notes[0]
    report = pages.prepare([tmp_path / "x"])
    assert report.findings[0].startswith("The seeds' standard deviation of the test total is 0.00013 for vary ")
    assert not any("lowest" in finding for finding in report.findings)
    page = (pages.write(report) / "report.md").read_text()
    assert "## What the spread of the seeds comes from" in page
    assert "which change init, order, noise; or init; or order" in page


def test_seeds_that_choose_their_training_images_are_seeds_of_one_cell(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "x", seed=seed, overrides=("data.subset=random", "vary=subset"),
                  config={"data.subset_seed": seed})  # fmt: skip
    study = gather([tmp_path / "x"])
    assert (len(study.compared), study.notes) == (3, ())


def test_runs_that_shared_their_processors_are_named(tmp_path: Path) -> None:
    for seed, share in enumerate((0.97, 0.41, 0.52)):
        write_run(tmp_path / "x", seed=seed, timing=Timing(train_seconds=7.0, epoch_seconds=[7.0], cpu_share=share))
    assert gather([tmp_path / "x"]).notes == (
        "2 of 3 runs used 41 to 52 % of the processors that they asked for: they waited, or shared them with other "
        "programs. In the latter case their times say little.",
    )


@pytest.mark.parametrize(("images", "warned"), [(50, True), (500, False)])
def test_frechet_distances_of_few_images_are_warned_of(tmp_path: Path, images: int, *, warned: bool) -> None:
    test = results.Test(total=0.016, fid_reconstructions=9.0, fid_floor=8.04)
    write_run(tmp_path / "x", overrides=(f"data.num_test={images}",), test=test)
    notes = gather([tmp_path / "x"]).notes
    assert any("as many real images have 8" in note for note in notes) is warned
