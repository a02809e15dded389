"""The benchmark measures what it says; how fast the machine is no test can know."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchvision.datasets import FashionMNIST

from vae_lab import results
from vae_lab.benchmark import measure, page, turns
from vae_lab.benchmark.loops import Epoch, plain
from vae_lab.benchmark.turns import Middle, Turn
from vae_lab.training import runner

ROOT = Path(__file__).parents[1]
TINY = ("encoder.blocks=[{dense:8}]", "decoder.blocks=[{dense:8}]", "latent.dim=4")


@pytest.mark.parametrize(("n", "ends"), [(1, (None, None)), (5, (None, None)), (6, (0, 5)), (20, (5, 14))])
def test_the_interval_of_a_median_lies_between_the_order_statistics(n: int, ends: tuple[float, float]) -> None:
    found = Middle.of([float(value) for value in reversed(range(n))])
    assert found == (n, (n - 1) / 2, *ends)


def test_training_and_the_bare_loop_alternate_and_learn_the_same(tmp_path: Path) -> None:
    run = measure.composed(*measure.QUICK.overrides, *TINY, "trainer.max_epochs=4")
    loop, told = turns.bare(run.config), []

    def epoch() -> Epoch:
        told.append(loop.epoch())
        return told[-1]

    interleaved = turns.Interleaved({"bare": epoch})
    result = runner.run(replace(run, directory=tmp_path), [interleaved])
    assert result.finished, result.error
    assert interleaved.epochs["bare"] == told
    assert len(told) == 4
    totals = results.read_history(tmp_path)["train"]["total"]
    assert totals == pytest.approx([one.total for one in told], rel=1e-5)
    ours = load_file(tmp_path / results.WEIGHTS)
    for name, weight in loop.model.state_dict().items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6)


def test_overhead_compares_neighbouring_epochs() -> None:
    run = measure.composed(*measure.QUICK.overrides, *TINY, "trainer.max_epochs=1")
    result = turns.take_turn(run).result

    def turn(*ours: float) -> Turn:
        epochs = {"ours": [Epoch(seconds, 0.1) for seconds in ours], "bare": [Epoch(one, 0.1) for one in (9, 1, 3, 1)]}
        return Turn(result, epochs)

    assert turn(9, 9, 3, 4).pairs() == [(3, 2), (4, 2)]  # without the first of both
    told = measure.overhead([turn(9, 9, 3, 4)], run.config)
    assert (told["ratio"]["n"], told["ratio"]["value"], told["pairs"]) == (2, 1.75, 2)
    told = measure.overhead([turn(9, 9, 3, 4), turn(9, 9, 2, 2), turn(9, 9, 4, 4)], run.config)
    assert (told["ratio"]["n"], told["ratio"]["value"], told["pairs"]) == (3, 1.75, 6)
    assert told["microseconds_a_step"]["value"] == 1.5e6 / 2  # of two steps an epoch


def test_the_time_to_the_target_ends_with_the_epoch_that_reaches_it() -> None:
    result = turns.take_turn(measure.composed(*measure.QUICK.overrides, *TINY, "trainer.max_epochs=1")).result
    timing = result.timing.model_copy(update={"first_step_seconds": 0.5})
    epochs = [Epoch(1.0, 0.03), Epoch(2.0, 0.018), Epoch(4.0, 0.015)]
    turn = Turn(result.model_copy(update={"timing": timing}), {"ours": epochs, "user": epochs, "bare": epochs[:1]})
    assert (turn.to_target("ours"), turn.to_target("user"), turn.to_target("bare")) == (3.5, 3.0, None)


def test_the_plain_loop_sees_the_same_images() -> None:
    settings = measure.settings_of("user", measure.QUICK)
    loop = plain(settings, measure.BUNDLED)
    batches = list(loop.batches(0))
    seen = torch.cat(batches).mul(255).round().to(torch.uint8).flatten(1)
    stored = FashionMNIST(measure.BUNDLED).data[: settings.data.num_train].flatten(1)
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, stored.tolist()))
    first, second = loop.epoch(), loop.epoch()
    assert 0 < second.total < first.total
    assert loop.first_step > 0
    published = measure.settings_of("published", measure.QUICK)
    assert published.data.batch_size == 32


def test_images_are_repeated_in_files_that_torchvision_reads(tmp_path: Path) -> None:
    measure.repeat_images(tmp_path, 9000)
    repeated, bundled = FashionMNIST(tmp_path), FashionMNIST(measure.BUNDLED)
    assert len(repeated) == 9000
    assert torch.equal(repeated.data[4000:8000], bundled.data)
    assert torch.equal(repeated.targets[8000:], bundled.targets[:1000])


def figures() -> dict[str, Any]:
    """All parts, as a whole measurement leaves them."""
    middle = {"n": 45, "value": 1.01, "low": 1.0, "high": 1.02}
    few = {"n": 5, "value": 3.0, "low": None, "high": None}
    one = {"epoch_seconds": middle, "images_per_second": 5000.0, "reached": "5 of 5", "seconds_to_target": few}
    more = {"ratio": middle, "microseconds_a_step": middle, "pairs": 40}
    size = {"epoch_seconds": 1.0, "images_per_second": 1000.0, "parameters": 10**6, "flops_per_image": 6 * 10**6}
    start = {"first_step_seconds": 6.0, "peak_bytes": 10**9}
    run = {"cell": "a-b", "seed": 0, "train_total": 0.015, "train_seconds": 5.0, "peak_bytes": None}
    peak = {"matrix_product": 2e11, "convolution": 1e11}
    return {
        "surroundings": measure.surroundings(measure.QUICK) | {"load_after": 1.0},
        "turns": {name: one | {"times_ours": few} for name in page.NAMES} | {"overhead": more},
        "starts": dict.fromkeys(page.NAMES, start) | {"help": {"seconds": 0.5}, "mistake": {"seconds": 0.5}},
        "machine": {"32-true": peak, "bf16-mixed": peak, "precision": "32-true", "flops_per_image": 6 * 10**6},
        "images": [size | {"image": count, "overhead": more} for count in (1000, 3000)],
        "widths": [size | {"width": 1, "overhead": more}],
        "grid": {
            "seconds": 60.0,
            "after_the_last_run": 3.0,
            "peak_bytes": 10**9,
            "runs": [run | {"overhead_seconds": 0.5, "ended": 10.0 * number} for number in (1, 2)],
        },
    }


def test_the_tables_hold_the_figures_and_go_into_a_document(tmp_path: Path) -> None:
    found = figures()
    text = page.page(found)
    assert text.count("\n## ") == 6
    assert "| (a) this project | 5,000 | 1.01 (1.00 to 1.02) | 3.00, 5 of 5 |" in text
    assert "1.010 (1.000 to 1.020) times as long as those of (b), 40 pairs of epochs" in text
    # 3 · 6 MFLOPs · 5,000 images/s of 200 GFLOP/s
    assert "90 GFLOP/s, 45 %" in text
    assert "The 2 runs of one seed train for 10.0 s together" in text
    document = tmp_path / "page.md"
    document.write_text(f"# Ours\n\n{page.BEGIN}\n\nold\n")
    page.insert(document, text)
    page.insert(document, text)
    assert document.read_text() == f"# Ours\n\n{page.BEGIN}\n\n{text}"
    document.write_text("# Ours\n")
    with pytest.raises(ValueError, match="has no line"):
        page.insert(document, text)
    canvas = page.plot(found)
    assert canvas is not None
    titles = [axes.get_title() for axes in canvas.axes]
    assert (titles[0], len(titles)) == ("images a second", 4)
    assert page.plot({"surroundings": found["surroundings"]}) is None


def call(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_leaves_tables_figures_and_a_plot(tmp_path: Path) -> None:
    done = call("machine", "widths", "--quick", "--out", "here", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    left = tmp_path / "here"
    found = json.loads((left / "benchmark.json").read_text())
    assert set(found) == {"surroundings", "machine", "widths"}
    assert found["widths"][0]["images_per_second"] > 0
    assert (left / "benchmark.md").read_text() in done.stdout
    assert (left / "benchmark.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("words", [["fast"], ["--repeats", "0"]])
def test_unknown_arguments_of_the_command_are_reported(tmp_path: Path, words: list[str]) -> None:
    done = call(*words, folder=tmp_path)
    assert done.returncode == 2
    assert "there is no part 'fast'" in done.stderr or "must be at least 1, but is 0" in done.stderr
