"""The measurements of `make bench`, part by part; all figures are plain numbers."""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import numpy as np
import torch
import torchvision

from vae_lab import config, results
from vae_lab.benchmark.first import FIRST_STEP, FirstStep
from vae_lab.benchmark.turns import Middle, Turn, take_turn
from vae_lab.config import PACKAGE, Config, Run, config_folder
from vae_lab.model.describe import describe
from vae_lab.training.machine import environment

BUNDLED = PACKAGE / "assets" / "fashion_mnist_3k"
PUBLISHED = ("encoder.blocks=[{down:32},{down:64}]", "decoder.blocks=[{unflatten:64},{up:64},{up:32}]")
"""Networks with 32 and 64 channels, which with batches of 32 are likely those of the published experiment."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Amount:
    """The amount of measurement: repeats of each part, epochs per training, and the sizes of the growing parts."""

    repeats: int = 6
    epochs: int = 10
    images: tuple[int, ...] = (1000, 3000, 10_000, 30_000, 60_000)
    widths: tuple[int, ...] = (1, 2, 4)
    grid: tuple[str, ...] = ("encoder=vanilla,encdec", "decoder=vanilla,encdec", "seed=0,1")
    size: int = 2048
    overrides: tuple[str, ...] = ()

    def changed(self, repeats: int | None, threads: int | None) -> "Amount":
        """A copy with this number of repeats and of CPU threads, if given."""
        words = () if threads is None else (f"trainer.threads={threads}",)
        return replace(self, repeats=repeats or self.repeats, overrides=(*self.overrides, *words))


FULL = Amount()
QUICK = Amount(
    repeats=1,
    epochs=3,
    images=(128, 256),
    widths=(1,),
    grid=("encoder=vanilla", "seed=0,1"),
    size=256,
    overrides=(
        "data.num_train=128",
        "data.num_val=64",
        "data.num_test=64",
        "trainer.threads=1",
        "metrics.frechet=false",
    ),
)


def composed(*overrides: str) -> Run:
    """The run of the shipped configuration with these overrides."""
    config.register_resolvers()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        return Run.of(hydra.compose("train", ["name=benchmark", *overrides], return_hydra_config=True))


def settings_of(variant: str, amount: Amount, seed: int = 0) -> Config:
    """The configuration of `user` or `published`; both train in 32 bits and use only our modules and images."""
    more = ("data.batch_size=32", *PUBLISHED) if variant == "published" else ()
    return composed(*amount.overrides, f"seed={seed}", *more).config


def turns(amount: Amount) -> Figures:
    """Our loop, the bare loop, a user's loop and the published set-up in turns: speed, and time to the target."""
    taken = []
    for seed in range(amount.repeats):
        overrides = (*amount.overrides, f"seed={seed}", f"trainer.max_epochs={amount.epochs}")
        plainly = {name: (settings_of(name, amount, seed), BUNDLED) for name in ("user", "published")}
        taken.append(take_turn(composed(*overrides), plainly))
    settings = composed(*amount.overrides).config
    found: Figures = {"overhead": overhead(taken, settings)}
    for name in ("ours", "bare", "user", "published"):
        epochs = [epoch.seconds for turn in taken for epoch in turn.epochs[name][1:] or turn.epochs[name]]
        times = [seconds for turn in taken if (seconds := turn.to_target(name)) is not None]
        ratios = [
            seconds / ours
            for turn in taken
            if (seconds := turn.to_target(name)) is not None and (ours := turn.to_target("ours"))
        ]
        found[name] = {
            "epoch_seconds": Middle.of(epochs)._asdict(),
            "images_per_second": settings.data.num_train / median(epochs),
            "reached": f"{len(times)} of {len(taken)}",
            "seconds_to_target": Middle.of(times)._asdict() if times else None,
            "times_ours": Middle.of(ratios)._asdict() if ratios else None,
        }
    return found


def overhead(taken: Sequence[Turn], settings: Config) -> Figures:
    """The time of our epochs against the bare epochs before and after: the ratio, and the difference in µs per step.

    Epochs of one turn are not independent samples, because the memory layout of a process is random. So the medians of
    the turns are the samples; if there is only one turn, its pairs are.
    """
    steps = math.ceil(settings.data.num_train / settings.data.batch_size)
    pairs = [turn.pairs() for turn in taken]
    units = [[pair] for pair in pairs[0]] if len(pairs) == 1 else pairs
    ratios = [median(ours / bare for ours, bare in unit) for unit in units]
    more = [median(1e6 * (ours - bare) / steps for ours, bare in unit) for unit in units]
    return {
        "ratio": Middle.of(ratios)._asdict(),
        "microseconds_a_step": Middle.of(more)._asdict(),
        "pairs": sum(map(len, pairs)),
    }


def images(amount: Amount) -> list[Figures]:
    """Seconds per epoch and overhead by the number of training images; the bundled images are repeated."""
    grown = []
    for count in amount.images:
        with tempfile.TemporaryDirectory() as folder:
            repeat_images(Path(folder), count)
            words = (f"data.root={folder}", f"data.num_train={count}", f"data.train_images={count}", "data.num_val=0")
            grown.append({"image": count} | _growth(amount, *words))
    return grown


def widths(amount: Amount) -> list[Figures]:
    """Seconds per epoch and overhead by the width of both networks, as a multiple of the default."""
    grown = []
    for width in amount.widths:
        encoder = f"encoder.blocks=[{{down:{16 * width}}},{{down:{32 * width}}}]"
        decoder = f"decoder.blocks=[{{unflatten:{32 * width}}},{{up:{32 * width}}},{{up:{16 * width}}}]"
        grown.append({"width": width} | _growth(amount, encoder, decoder))
    return grown


def _growth(amount: Amount, *overrides: str) -> Figures:
    """Train eight epochs, which give six pairs; three epochs if there is only one repeat."""
    run = composed(*amount.overrides, f"trainer.max_epochs={8 if amount.repeats > 1 else 3}", *overrides)
    turn = take_turn(run)
    seconds = median(ours for ours, _ in turn.pairs())
    described = describe(run.config)
    return {
        "epoch_seconds": seconds,
        "images_per_second": run.config.data.num_train / seconds,
        "parameters": described.parameters,
        "flops_per_image": described.flops,
        "overhead": overhead([turn], run.config),
    }


def repeat_images(folder: Path, count: int) -> None:
    """Write IDX files with `count` training images, which repeat the bundled ones, and the bundled test images."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (BUNDLED / "FashionMNIST" / "raw").glob("*-ubyte"):
        content = file.read_bytes()
        if file.name.startswith("train"):
            head = 16 if "images" in file.name else 8
            each = len(content[head:]) // int.from_bytes(content[4:8], "big")
            body = np.resize(np.frombuffer(content, np.uint8, offset=head), count * each).tobytes()
            content = content[:4] + count.to_bytes(4, "big") + content[8:head] + body
        (raw / file.name).write_bytes(content)


# --- Separate processes ------------------------------------------------------------------------------------

OURS = "from vae_lab.cli import main; main()"
# A typical user's loop imports neither Lightning nor Hydra.
PLAIN = """
import json, sys
from pathlib import Path
import torch
from vae_lab import config
from vae_lab.benchmark.loops import plain
settings = config.validate(json.loads(sys.argv[1]))
torch.set_num_threads(settings.trainer.threads)
loop = plain(settings, Path(sys.argv[2]))
loop.epoch()
print(f"first step at {loop.first_step}")
"""


def starts(amount: Amount) -> Figures:
    """The time from the command to the end of the first step, and the peak memory of a process over one epoch."""
    commands = {
        "ours": [
            *(OURS, "train", f"+callbacks.first._target_={FirstStep.__module__}.FirstStep"),
            *("trainer.max_epochs=1", "name=start", *amount.overrides),
        ],
        "user": [PLAIN, json.dumps(settings_of("user", amount).container()), str(BUNDLED)],
        "published": [PLAIN, json.dumps(settings_of("published", amount).container()), str(BUNDLED)],
    }
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in commands}
    for _ in range(amount.repeats):
        for name, words in commands.items():
            seen[name].append(_first_step(words))
    found: Figures = {
        name: {
            "first_step_seconds": median(seconds for seconds, _ in both),
            "peak_bytes": median(memory for _, memory in both),
        }
        for name, both in seen.items()
    }
    for name, word in (("help", "--help"), ("mistake", "latent.dim=0")):
        found[name] = {"seconds": median(_call([OURS, "train", word])[0] for _ in range(amount.repeats))}
    return found


def _first_step(words: Sequence[str]) -> tuple[float, int]:
    started = time.time()
    _, output, memory = _call(words)
    line = next(line for line in output.splitlines() if line.startswith(FIRST_STEP))
    return float(line.removeprefix(FIRST_STEP)) - started, memory


def _call(words: Sequence[str]) -> tuple[float, str, int]:
    """Run Python code with arguments in an empty folder: seconds, its output, and its peak memory in bytes."""
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started
        output.seek(0)
        return seconds, output.read(), used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


WITHOUT_PICTURES = ("~callbacks.pictures", "callbacks.pages.points=0")


def grid(amount: Amount) -> Figures:
    """Run the grid of `amount` as one multirun in a separate process, without pictures.

    The overhead of a run is the time between the previous result and its own, minus the seconds of its training, with
    the first step, its validations, its test and its test metrics.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", "-m", *amount.grid, "name=grid", *WITHOUT_PICTURES, *amount.overrides]
        root = Path(folder)
        code = f"import os; os.chdir({folder!r}); {OURS}"
        began = time.time()
        seconds, output, memory = _call([code, *words])
        files = sorted(root.glob("outputs/grid/*/*/result.json"), key=lambda file: file.stat().st_mtime)
        if not files:
            raise RuntimeError(f"the grid that was to be measured left no results:\n{output}")
        found, last = [], began
        for file in files:
            result, ended = results.read_result(file.parent), file.stat().st_mtime
            assert result is not None
            found.append(_run(result, results.read_history(file.parent), ended - last) | {"ended": ended - began})
            last = ended
        return {"seconds": seconds, "after_the_last_run": began + seconds - last, "peak_bytes": memory, "runs": found}


def _run(result: results.Result, history: dict[str, dict[str, list[float]]], seconds: float) -> Figures:
    timing = result.timing
    accounted = [timing.train_seconds, timing.first_step_seconds, timing.metrics_seconds]
    accounted += [second for split in ("val", "test") for second in history.get(split, {}).get("seconds", [])]
    return {
        "cell": result.cell,
        "seed": result.seed,
        "train_total": result.train.total,
        "train_seconds": timing.train_seconds,
        "peak_bytes": result.memory.peak_bytes,
        "overhead_seconds": seconds - sum(second or 0.0 for second in accounted),
    }


# --- The machine -------------------------------------------------------------------------------------------


def machine(amount: Amount) -> Figures:
    """The machine's peak in FLOP/s: a large matrix product and a large convolution, in both precisions."""
    size, channels = amount.size, max(8, amount.size // 16)
    settings = composed(*amount.overrides).config
    torch.set_num_threads(settings.trainer.threads)
    found = {}
    for name, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        a, b = torch.randn(2, size, size).to(dtype)
        maps = torch.randn(64, channels, 28, 28).to(dtype, memory_format=torch.channels_last)
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
        with torch.no_grad():
            found[name] = {
                "matrix_product": 2 * size**3 / _best(lambda: a @ b, amount),  # noqa: B023
                "convolution": 2 * 64 * 28 * 28 * 9 * channels**2 / _best(lambda: layer(maps), amount),  # noqa: B023
            }
    return found | {"precision": settings.trainer.precision, "flops_per_image": describe(settings).flops}


def _best(work: Callable[[], Any], amount: Amount) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(1 + 4 * amount.repeats))


def surroundings(amount: Amount) -> Figures:
    """The conditions of the measurement: hardware, versions, the load of the machine and the date."""
    settings = composed(*amount.overrides).config
    return environment(settings).model_dump() | {
        "precision": settings.trainer.precision,
        "torchvision": torchvision.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


PARTS: dict[str, Callable[[Amount], Any]] = {
    "machine": machine,
    "turns": turns,
    "starts": starts,
    "images": images,
    "widths": widths,
    "grid": grid,
}
