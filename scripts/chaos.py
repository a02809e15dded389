"""Disturb sweeps: kills, a full disk, many processes, a lost node, odd commands, run folders, images and settings.

    python scripts/chaos.py                              # all parts; the figures go to chaos.json
    python scripts/chaos.py kills --kills 5 --seed 1     # one part

The exit code is 1 if a guarantee was broken. docs/reliability.md has the figures.
"""

import argparse
import csv
import hashlib
import importlib
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from altered import alterations
from first_runs import image_folders, settings
from fuzz import exit_code, fuzz

from vae_lab import results

# --- The grid ----------------------------------------------------------------------------------------------

GRID = (
    "-m", "encoder=vanilla,encdec", "latent.dim=4", "data.num_train=200", "data.num_val=50",
    "data.num_test=50", "data.batch_size=20", "trainer.threads=1", "name=grid",
)  # fmt: skip


class Child:
    """The command in a separate process, forked from this one, which has already imported torch."""

    words: ClassVar = ["decoder=vanilla,encdec", "trainer.max_epochs=20"]

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Path(tempfile.mkstemp(suffix=".txt")[1])
        self.started = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 3
            try:
                descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                os.chdir(folder)
                code = exit_code(["train", *GRID, *self.words])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self) -> tuple[int, str]:
        """Its exit code (−signal if a signal ended it) and its output."""
        _, status = os.waitpid(self.pid, 0)
        output = self.log.read_text(errors="replace")
        self.log.unlink()
        return os.waitstatus_to_exitcode(status), output

    def kill_after(self, seconds: float) -> bool:
        """Kill it this many seconds after its start; False if it ended earlier by itself."""
        while time.monotonic() - self.started < seconds:
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return False
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        return True


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The finished results of a grid: run → the inode and content of its file."""
    found = folder.glob("outputs/grid/*/*/result.json")
    return {
        str(path.parent.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in found
        if (result := results.Result.model_validate_json(path.read_bytes())).finished and result.has_its_files
    }


def outcome(folder: Path) -> dict[str, Any]:
    """The outcome of a grid's runs, without times and memory: run → checksum of its weights, losses, history."""
    found = {}
    for run, (_, content) in finished(folder).items():
        result, path = json.loads(content), folder / run / "result.json"
        weights = hashlib.sha256((path.parent / "model.safetensors").read_bytes()).hexdigest()
        with open(path.parent / "history.csv", newline="") as file:
            history = [row[:-1] for row in csv.reader(file)]
        losses = [result[split] for split in ("train", "val", "test")]
        found[run] = (weights, losses, history)
    return found


class Undisturbed(NamedTuple):
    """The undisturbed grid: its outcome, its duration, and the bytes that it writes."""

    outcome: dict[str, Any]
    seconds: float
    size: int


def undisturbed(place: Path) -> Undisturbed:
    """Run the grid once without disturbing it."""
    folder = place / "undisturbed"
    child = Child(folder)
    code, output = child.wait()
    seconds = time.monotonic() - child.started
    ended = outcome(folder)
    if code or not ended:
        raise SystemExit(f"the undisturbed grid ended with {code}:\n{output}")
    return Undisturbed(ended, seconds, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def kills(place: Path, expected: Undisturbed, count: int, seed: int) -> dict[str, Any]:
    """Kill the grid (-9) at random moments and rerun the same command each time, until it finishes."""
    chance = random.Random(seed)
    broken: list[str] = []
    moments: list[int] = []
    grids = resumed = 0
    before: dict[str, tuple[int, bytes]] = {}
    while True:
        folder = place / f"killed-{grids}"
        child = Child(folder)
        killed = len(moments) < count and child.kill_after(chance.uniform(0, expected.seconds))
        code, output = child.wait()
        now = finished(folder)
        broken += [f"{folder.name}: {run} was lost or run again" for run in before if now.get(run) != before[run]]
        broken += [f"{folder.name}: {output}"] * ("Traceback" in output)
        resumed += len(re.findall("^  .*: goes on after epoch", output, re.MULTILINE))
        before = now
        if killed:
            moments.append(len(now))
            continue
        grids, before = grids + 1, {}
        if code or outcome(folder) != expected.outcome:
            broken.append(f"{folder.name}: exit code {code}, or another outcome: {output}")
        if len(moments) == count:
            break
    by_finished = [moments.count(number) for number in range(len(expected.outcome) + 1)]
    return {
        "kills": count, "by runs finished": by_finished, "grids": grids, "runs gone on with": resumed, "broken": broken,
    }  # fmt: skip


def full_disk(place: Path, expected: Undisturbed, shares: Sequence[float]) -> dict[str, Any]:
    """Run the grid on a disk with room for a fraction of it; then enlarge the disk and rerun the command."""
    broken: list[str] = []
    codes = []
    for share in shares:
        disk = place / f"disk-{share}"
        disk.mkdir()
        options = f"size={max(4096, int(expected.size * share))}"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            return {"skipped": mounted.stderr.strip() or "no tmpfs can be mounted", "broken": []}
        code, output = Child(disk / "work").wait()
        codes.append(code)
        before = finished(disk / "work")
        wrong = [run for run, end in outcome(disk / "work").items() if end != expected.outcome[run]]
        if code != 1 or "No space left" not in output or "Traceback" in output or wrong:
            broken.append(f"{share} of the room: exit code {code}, wrong: {wrong}: {output}")
        subprocess.run(["mount", "-o", f"remount,size={4 * expected.size}", disk], check=True)
        code, output = Child(disk / "work").wait()
        now = finished(disk / "work")
        if code or outcome(disk / "work") != expected.outcome or any(now.get(run) != before[run] for run in before):
            broken.append(f"{share}, after room was made: exit code {code}: {output}")
        subprocess.run(["umount", disk], check=True)
    return {"shares of the room": list(shares), "exit codes": codes, "broken": broken}


def processes(place: Path, expected: Undisturbed, count: int) -> dict[str, Any]:
    """Start the same command many times at once: exactly one of them must train each run."""
    folder = place / "at-once"
    children = [Child(folder) for _ in range(count)]
    ends = [child.wait() for child in children]
    trained = Counter(run for _, output in ends for run in re.findall(r"^\d/\d  (\S+): total ", output, re.MULTILINE))
    left_to_others = sum(output.count("in the hands of process") for _, output in ends)
    broken = [f"exit code {code}: {output}" for code, output in ends if code or "Traceback" in output]
    if sorted(trained.values()) != [1] * len(expected.outcome) or outcome(folder) != expected.outcome:
        broken.append(f"trained {dict(trained)}")
    if not (folder / "outputs/grid/report/report.html").is_file():
        broken.append("no report")
    return {"processes": count, "runs": len(trained), "left to another": left_to_others, "broken": broken}


def lost_node(place: Path, expected: Undisturbed, seed: int) -> dict[str, Any]:
    """Kill a node of a Ray cluster during the grid: its runs must be done on the other node."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        return {"skipped": f"Ray is not installed ({error})", "broken": []}
    folder, broken = place / "nodes", []
    folder.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        words = [*GRID, *Child.words, "hydra/launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'"]
        command = [sys.executable, str(Path(__file__).parents[1] / "train.py"), *words]
        with open(folder / "said.txt", "w+") as log:
            sweep = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            awaited = random.Random(seed).choice(["*/*/checkpoints/last.ckpt", "*/*/result.json"])
            while sweep.poll() is None and len([*folder.glob(f"outputs/grid/{awaited}")]) < 2:
                time.sleep(0.01)
            before = finished(folder)
            cluster.remove_node(node, allow_graceful=False)
            code = sweep.wait()
            log.seek(0)
            text = log.read()
        finished_alone = len([*folder.glob("outputs/grid/*/*/result.json")]) == len(expected.outcome)
        if not finished_alone:  # the lost node's runs still held their locks when they were started again
            again = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            code, text = again.returncode, text + again.stdout + again.stderr
    finally:
        cluster.shutdown()
    if code or "Traceback" in text:
        broken.append(f"exit code {code}: {text}")
    if outcome(folder) != expected.outcome:
        broken.append("another outcome")
    if any(finished(folder).get(run) != file for run, file in before.items()):
        broken.append("a finished run was lost or run again")
    return {"finished before": len(before), "the command went on by itself": finished_alone, "broken": broken}


# --- The command -------------------------------------------------------------------------------------------


def main() -> None:
    """Run the parts that were asked for, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        description="What a sweep survives: kills, a full disk, many processes, odd words."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="kills, disk, processes, node, fuzz, folders, images, settings (all)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0, 0.1, 0.3, 0.5, 0.7, 0.9], help="of the room needed"
    )
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--cases", type=int, default=1000, help="of fuzz")
    parser.add_argument("--folders", type=int, default=1000, help="altered run folders")
    parser.add_argument("--images", type=int, default=200, help="altered image folders")
    parser.add_argument("--settings", type=int, default=200, help="trainings with random settings")
    parser.add_argument("--out", type=Path, default=Path("chaos.json"))
    parser.add_argument("--small", action="store_true", help="a grid of two runs in place of four")
    given = parser.parse_args()
    if given.small:
        Child.words = ["decoder=vanilla", "trainer.max_epochs=4"]
    # Import here, not in every process, so that kills hit the sweep and not the imports.
    for module in (
        "vae_lab.training.runner", "vae_lab.report.terminal", "vae_lab.trained.export", "torch.utils.tensorboard"
    ):  # fmt: skip
        importlib.import_module(module)
    torch.set_num_threads(1)  # a forked process does not get the others, and would wait for them for ever
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        needs_grid = {"kills", "disk", "processes", "node"} & {*(given.parts or ["kills"])}
        expected = undisturbed(place) if needs_grid else Undisturbed({}, 0, 0)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "kills": lambda: kills(place, expected, given.kills, given.seed),
            "disk": lambda: full_disk(place, expected, given.shares),
            "processes": lambda: processes(place, expected, given.processes),
            "node": lambda: lost_node(place, expected, given.seed),
            "fuzz": lambda: fuzz(given.cases, given.seed),
            "folders": lambda: alterations(place, given.folders, given.seed),
            "images": lambda: image_folders(place, given.images, given.seed),
            "settings": lambda: settings(place, given.settings, given.seed),
        }
        for part in given.parts or parts:
            started = time.monotonic()
            found[part] = parts[part]() | {"seconds": round(time.monotonic() - started, 1)}
            print(part, {key: value for key, value in found[part].items() if key != "broken"}, flush=True)
    broken = [f"{part}: {one}" for part, figures in found.items() for one in figures["broken"]]
    environment = {"python": platform.python_version(), "torch": str(torch.__version__), "cores": os.cpu_count()}
    results.write_text(given.out, json.dumps(found | {"environment": environment}, indent=2) + "\n")
    for one in broken:
        print(f"BROKEN  {one}")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
