"""Figures of a study: the right ones, of the right runs."""

from pathlib import Path

import numpy as np
from runs import write_grid, write_run

from vae_lab.study import plots
from vae_lab.study.gather import gather
from vae_lab.study.plots import Drawing, pareto_front, render, short
from vae_lab.study.statistics import analyse


def drawn(folder: Path) -> dict[str, Drawing]:
    study = gather([folder])
    drawn = (draw() for draw in plots.drawings(study, analyse(study), study.cells))
    return {drawing.name: drawing for drawing in drawn if drawing is not None}


def test_a_grid_has_every_figure(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=2)
    cells = ("vanilla-vanilla", "vanilla-encdec", "encdec-vanilla", "encdec-encdec")
    assert set(drawn(tmp_path / "x")) == {
        "comparison", "predictions", "samples", "cost", "heatmap",
        *(f"{cell}_{kind}" for cell in cells for kind in ("history", "predictions")),
    }  # fmt: skip


def test_a_history_has_training_and_validation_of_each_loss_and_a_band_over_the_seeds(tmp_path: Path) -> None:
    for seed, total in enumerate((0.01, 0.02, 0.06)):
        write_run(tmp_path / "x", seed=seed, total=total)
    figure = drawn(tmp_path / "x")["vanilla-vanilla_history"].figure
    assert [axes.get_title() for axes in figure.axes] == ["total", "KL, nats per latent dimension", "reconstruction"]
    for axes, scale in zip(figure.axes, (1, 25, 0.75), strict=True):
        assert [line.get_label() for line in axes.get_lines()] == ["train", "val"]
        line = axes.get_lines()[0]
        assert line.get_xdata().tolist() == list(range(1, 11))
        assert np.allclose(line.get_ydata(), 0.03 * scale * (1 + 4 / np.arange(1, 11)))
        top = axes.collections[0].get_paths()[0].vertices[:, 1].max()
        assert np.isclose(top, 0.06 * scale * 5)


def test_every_cell_is_shown_with_the_same_images_and_the_originals_once(tmp_path: Path) -> None:
    write_grid(tmp_path / "x", seeds=1)
    figures = drawn(tmp_path / "x")
    names = [axes.texts[0].get_text() for axes in figures["predictions"].figure.axes]
    assert names == ["original", "vanilla-vanilla", "vanilla-encdec", "encdec-vanilla", "encdec-encdec"]
    assert len(figures["samples"].figure.axes) == 4


def test_colour_images_are_drawn_in_colour(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x", pictures=False)
    red = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    red[:, 0] = 200
    np.savez(folder / "pictures.npz", originals=red, reconstructions=red, samples=red)
    strip = drawn(tmp_path / "x")["samples"].figure.axes[0].images[0].get_array()
    assert strip[0, 0].tolist() == [200, 0, 0, 255]
    assert strip[0, 8].tolist() == [0, 0, 0, 0]  # between two images


def test_the_pareto_front_joins_cells_that_no_other_beats_in_both() -> None:
    points = {"a": (1.0, 5.0), "b": (2.0, 3.0), "c": (3.0, 4.0), "d": (4.0, 1.0), "e": (4.0, 2.0)}
    assert pareto_front(points) == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]


def test_times_of_different_hardware_have_no_front(tmp_path: Path) -> None:
    for name, device in (("one", "Processor A"), ("two", "Processor B")):
        write_run(tmp_path / name)
        write_run(tmp_path / name, "encdec", device=device)
    lines = {name: [axes.get_lines() for axes in drawn(tmp_path / name)["cost"].figure.axes] for name in ("one", "two")}
    assert len(lines["one"][0]) == len(lines["two"][0]) + 1
    assert len(lines["one"][1]) == len(lines["two"][1])


def test_the_heat_map_has_each_mean_where_it_belongs(tmp_path: Path) -> None:
    for place, (encoder, decoder) in enumerate([("vanilla", "encdec"), ("encdec", "vanilla"), ("encdec", "encdec")]):
        write_run(tmp_path / "x", encoder, decoder, total=0.01 * (place + 1))
    panel = next(axes for axes in drawn(tmp_path / "x")["heatmap"].figure.axes if axes.get_title() == "test total")
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["encdec", "vanilla"]
    grid = np.ma.filled(panel.images[0].get_array(), np.nan)
    assert np.allclose(grid, [[0.01, np.nan], [0.03, 0.02]], equal_nan=True)


def test_a_swept_number_has_a_figure_of_its_own(tmp_path: Path) -> None:
    for encoder in ("vanilla", "encdec"):
        for lr in ("0.01", "0.001"):
            for seed in (0, 1):
                write_run(tmp_path / "x", encoder, seed=seed, overrides=(f"optimizer.lr={lr}",))
    axes = drawn(tmp_path / "x")["by_optimizer.lr"].figure.axes[0]
    assert axes.get_legend_handles_labels()[1] == ["vanilla", "encdec"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.01"]


def test_files_that_are_missing_or_damaged_leave_their_figures_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x")
    (folder / "history.csv").write_text("epoch,split,total,reconstruction,kl,seconds\n1,train,0.1")
    (folder / "pictures.npz").write_bytes(b"PK\x03\x04")
    assert not drawn(tmp_path / "x")


def test_a_figure_is_a_png_and_an_svg_whose_text_is_text(tmp_path: Path) -> None:
    write_run(tmp_path / "x")
    png, svg = render(drawn(tmp_path / "x")["vanilla-vanilla_history"])
    assert png.startswith(b"\x89PNG")
    assert ">reconstruction</text>" in svg


def test_short_figures() -> None:
    assert [short(value) for value in (0.01523, 7.352, 1_223_713, 13_900_000, 1.05e9, 2945.2, 0)] == [
        "0.01523", "7.352", "1.22 M", "13.9 M", "1.05 G", "2945", "0.0000",
    ]  # fmt: skip
