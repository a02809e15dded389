"""What a command is about to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import settings, write_run

from vae_lab import results
from vae_lab.config import Run
from vae_lab.training import plan


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return tmp_path / "x"


def run_of(sweep: Path, seed: int, encoder: str = "vanilla") -> Run:
    run = settings(("name=x", f"encoder={encoder}", "decoder=vanilla", f"seed={seed}"))
    return replace(run, directory=sweep / run.cell / f"seed-{seed}")


def left(sweep: Path, seed: int, encoder: str = "vanilla", **changes: Any) -> Path:
    """A folder that a run has left, in the configuration of `run_of`."""
    config = run_of(sweep, seed, encoder).config
    known = {"config_sha256": config.sha256(), "metrics": config.metrics.model_dump()}
    return write_run(sweep, encoder, seed=seed, **known | changes)


def told(*runs: Run, all_runs: bool = False) -> list[str]:
    return list(plan.lines([plan.stage(run) for run in runs], "outputs/x", all_runs=all_runs))


def test_the_plan_has_the_state_of_each_run(sweep: Path) -> None:
    runs = [run_of(sweep, seed) for seed in range(6)]
    left(sweep, 0, wall_seconds=20.0)
    left(sweep, 1, status="failed", error="OSError: no luck")
    harmed = left(sweep, 2, wall_seconds=30.0, files={"history.csv": "0" * 64})
    left(sweep, 3).joinpath("result.json").write_text("{")
    with results.locked(runs[4].directory) as owner:
        assert owner is None
        head, *lines = told(*runs)
        assert f"  {runs[4]}: in the hands of {results.holder(runs[4].directory)}" in lines
    assert head == (
        "Plan: 6 runs under outputs/x: 1 finished, 1 in the hands of other processes, 3 to do again, 1 to do. "
        "About 0:01:20, judged by 1 finished run."
    )
    assert [line for line in lines if "hands" not in line] == [
        f"  {runs[1]}: to do again, since it failed: OSError: no luck",
        f"  {runs[2]}: to do again, since {harmed / 'history.csv'} is damaged",
        f"  {runs[3]}: to do again, since {runs[3].directory / 'result.json'} is damaged",
    ]
    assert told(runs[0], runs[5], all_runs=True)[1:] == [f"  {runs[0]}: finished", f"  {runs[5]}: to do"]


def test_times_are_estimated_from_the_same_cell_or_else_from_all_others(sweep: Path) -> None:
    left(sweep, 0, wall_seconds=10.0)
    left(sweep, 1, wall_seconds=20.0)
    left(sweep, 0, "encdec", wall_seconds=60.0)
    left(sweep, 1, "encdec", wall_seconds=1.0, resumed=[3])  # not the whole of it
    runs = [run_of(sweep, seed, encoder) for encoder in ("vanilla", "encdec") for seed in (0, 1, 2)]
    new = run_of(sweep, 0, "mlp")
    assert "4 finished, 3 to do. About 0:01:45, judged by 3 finished runs." in told(*runs, new)[0]
    assert told(new)[0].endswith("1 to do. How long it takes is not known before a run has finished.")


def test_of_many_runs_only_a_few_are_printed(sweep: Path) -> None:
    for seed in range(12):
        left(sweep, seed, status="failed", error="OSError: no")
    runs = [run_of(sweep, seed) for seed in range(12)]
    lines = told(*runs)
    assert len(lines) == 12
    assert lines[-1] == "  and 2 more: plan=true tells all"
    assert len(told(*runs, all_runs=True)) == 13
