"""Measure a training step under each objective beside the default's: `python scripts/objective_costs.py`.

Each round takes some steps under every objective in turn, so that a slow machine slows all of them. The factors go into
the table of docs/objectives.md.
"""

import argparse
import os
import re
import time
from pathlib import Path
from statistics import median

import torch
from hydra import compose, initialize_config_dir
from scipy.stats import bootstrap

from vae_lab.benchmark.turns import bare
from vae_lab.config import Run, config_folder, register_resolvers
from vae_lab.training.machine import environment

DOCUMENT = Path(__file__).parents[1] / "docs" / "objectives.md"
BEGIN, END = "<!-- costs: written by scripts/objective_costs.py -->", "<!-- end of costs -->"
ROW = re.compile(r"^(\| `(objective=[^`]+)` \|.*\|)[^|]*\|$", re.MULTILINE)
DEFAULT = "objective=mse_kl"


def factor(own: list[float], default: list[float]) -> str:
    """The median of the ratios of paired times, with its 95 % interval."""
    ratios = [one / other for one, other in zip(own, default, strict=True)]
    if len({*ratios}) == 1:
        return f"× {ratios[0]:.2f}"
    interval = bootstrap((ratios,), median, vectorized=False, rng=0).confidence_interval
    return f"× {median(ratios):.2f} ({interval.low:.2f} to {interval.high:.2f})"


def main() -> None:
    """Measure, print the factors and write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, metavar="N")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of each objective in a round")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    given = parser.parse_args()
    register_resolvers()
    torch.set_num_threads(given.threads)
    text = DOCUMENT.read_text(encoding="utf-8")
    choices = [words for _, words in ROW.findall(text)]
    same = (f"trainer.threads={given.threads}", f"data.num_train={64 * given.steps}", "scheduler=constant")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        runs = {words: Run.of(compose("train", [*words.split(), *same], return_hydra_config=True)) for words in choices}
    loops = {words: bare(run.config) for words, run in runs.items()}
    seconds: dict[str, list[float]] = {words: [] for words in choices}
    for number in range(given.rounds + 1):
        for words, loop in loops.items():
            started = time.perf_counter()
            loop.epoch()
            if number:  # the first warms up
                seconds[words].append(time.perf_counter() - started)
    factors = {words: factor(own, seconds[DEFAULT]) for words, own in seconds.items()}
    for words in choices:
        print(f"{factors[words]:24} {words}")
    settings, machine = runs[DEFAULT].config, environment(runs[DEFAULT].config)
    milliseconds = 1000 * median(seconds[DEFAULT]) / given.steps
    note = (
        f"Time of a step: of 64 images under the default networks, against the {milliseconds:.1f} ms of the default; "
        f"the median over {given.rounds} rounds\n"
        f"of {given.steps} steps of each in turn, and the 95 % interval of that median. By `python "
        f"scripts/objective_costs.py --rounds {given.rounds} --steps {given.steps}`\n"
        f"on {machine.device}, {given.threads} of {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}, "
        f"{settings.trainer.precision}, Python {machine.python}, torch {machine.torch}."
    )
    text = ROW.sub(lambda row: f"{row[1]} {factors[row[2]]} |", text)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{note}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
