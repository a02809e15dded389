"""Measure how sweeps scale: a thousand runs in one command, and runs side by side; `make scale`."""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import mean, median

from rich.console import Console

ROOT = Path(__file__).parents[1]
ONE_STEP = (
    "+trainer.max_steps=1", "data.num_train=32", "data.batch_size=32", "data.num_val=32", "data.num_test=32",
    "latent.dim=4", "encoder=mlp", "decoder=mlp", "trainer.threads=1", "callbacks=quiet", "metrics.frechet=false",
)  # fmt: skip
SMALL_MODELS = ("encoder=mlp", "decoder=mlp", "trainer.threads=1", "trainer.max_epochs=20", "seed=0,1,2,3,4,5")


def main() -> None:
    """Measure, and write the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python scripts/scale.py --parts runs --runs 100"
    )
    parser.add_argument("--parts", nargs="+", choices=["runs", "local"], default=["runs", "local"])
    parser.add_argument("--runs", type=int, default=1000, help="one-step runs of the sweep (default: 1000)")
    parser.add_argument("--turns", type=int, default=3, help="sweeps side by side and one after another (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("scale.json"), help="default: scale.json")
    given = parser.parse_args()
    if given.runs < 10 or given.turns < 1:
        parser.error("--runs must be 10 at least, --turns 1")
    console, figures = Console(), {}
    folder = given.out.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    if "runs" in given.parts:
        figures["runs"] = one_step_runs(given.runs, folder)
        console.print(figures["runs"])
    if "local" in given.parts:
        figures["local"] = side_by_side(given.turns, folder)
        console.print(figures["local"])
    given.out.write_text(json.dumps(figures, indent=1) + "\n")


def one_step_runs(runs: int, folder: Path) -> dict[str, float]:
    """A sweep of one-step runs: the time besides training, and the growth of memory during the sweep."""
    name = f"scale-{runs}-{os.getpid()}"
    process = subprocess.Popen(
        [*command(), "-m", f"seed=range({runs})", *ONE_STEP, f"name={name}"], cwd=folder, stdout=subprocess.DEVNULL
    )
    memory: list[tuple[int, int]] = []  # runs that have ended, resident bytes
    begun = time.monotonic()
    place = folder / "outputs" / name

    def look() -> None:
        while process.returncode is None:
            ended = len(list(place.glob("*/*/result.json")))
            resident = resident_bytes(process.pid)
            if ended and resident:
                memory.append((ended, resident))
            time.sleep(0.2)

    watching = threading.Thread(target=look)
    watching.start()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, busy = time.monotonic() - begun, used.ru_utime + used.ru_stime
    watching.join()
    if process.returncode:
        raise SystemExit(f"the sweep ended with exit code {process.returncode}: {place}")
    results = [json.loads(path.read_text()) for path in place.glob("*/*/result.json")]
    trained = sum(one["timing"]["first_step_seconds"] + (one["timing"]["train_seconds"] or 0) for one in results)
    warm = [bytes_ for ended, bytes_ in memory if 0.2 * runs <= ended <= 0.4 * runs]
    late = [bytes_ for ended, bytes_ in memory if 0.8 * runs <= ended < runs]
    return {
        "runs": len(results),
        "seconds": round(seconds, 1),
        "training_seconds": round(trained, 1),
        "overhead_seconds_a_run": round((seconds - trained) / runs, 3),
        "overhead_processor_seconds_a_run": round((busy - trained) / runs, 3),
        "within_the_run_seconds": round(median(one["wall_seconds"] for one in results), 3),
        "resident_mb_at_a_third": round(mean(warm) / 1e6, 1),
        "resident_mb_at_the_end": round(mean(late) / 1e6, 1),
        "growth_kb_a_run": round((mean(late) - mean(warm)) / 1e3 / (0.6 * runs), 1),
    }


def resident_bytes(pid: int) -> int | None:
    """The resident memory of a process; None if it has ended, or the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), None)


def side_by_side(turns: int, folder: Path) -> dict[str, object]:
    """Sweeps of small models with one thread each, alternately sequential and with the launcher `local`."""
    seconds: dict[str, list[float]] = {"basic": [], "local": []}
    for turn in range(turns):
        for launcher in ("basic", "local") if turn % 2 == 0 else ("local", "basic"):
            name = f"side-{launcher}-{turn}-{os.getpid()}"
            words = ["-m", *SMALL_MODELS, f"hydra/launcher={launcher}", f"name={name}"]
            begun = time.monotonic()
            subprocess.run([*command(), *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
            seconds[launcher].append(round(time.monotonic() - begun, 2))
    ratios = [one / other for one, other in zip(seconds["basic"], seconds["local"], strict=True)]
    return {"seconds": seconds, "times_as_fast": round(median(ratios), 2), "ratios": [round(one, 2) for one in ratios]}


def command() -> list[str]:
    """`python train.py` of this checkout."""
    return [sys.executable, str(ROOT / "train.py")]


if __name__ == "__main__":
    main()
