"""A sweep of many runs costs little beside their training, and no more memory than a short one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_GROWTH = 300
"""Kilobytes a run: a model or a trainer that is kept would be ten times as much."""


def test_a_hundred_runs_cost_little_time_and_no_memory(tmp_path: Path) -> None:
    words = ["--parts", "runs", "--runs", "100", "--out", str(tmp_path / "scale.json")]
    subprocess.run([sys.executable, str(ROOT / "scripts/scale.py"), *words], cwd=tmp_path, check=True, timeout=500)
    figures = json.loads((tmp_path / "scale.json").read_text())["runs"]
    assert figures["runs"] == 100
    assert figures["overhead_processor_seconds_a_run"] <= 1  # of one thread: neighbours do not lengthen it
    assert figures["growth_kb_a_run"] <= MOST_GROWTH
