"""A bounded part of what `make chaos` does at length: kills, a full disk, many processes, random words."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "chaos.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_a_sweep_survives_kills_a_full_disk_and_many_processes(tmp_path: Path) -> None:
    few = (
        "kills", "disk", "processes", "fuzz", "folders", "images", "settings", "--small", "--seed=1",
        "--kills=2", "--shares=0.5", "--processes=4", "--cases=30", "--folders=8", "--images=6", "--settings=6",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *few, "--out=chaos.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert found["kills"]["kills"] == 2
    assert found["processes"]["runs"] == 2
    assert sum(found["fuzz"]["codes"].values()) == 30
    assert sum(found["folders"]["codes"].values()) == 8
    assert found["images"]["cases"] == found["settings"]["cases"] == 6
    if "skipped" in found["disk"]:
        pytest.skip(f"all but the full disk was tried: {found['disk']['skipped']}")
