"""`vae-lab evaluate`: the test metrics of finished runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from rich.console import Console
from rich.progress import track

from vae_lab import results
from vae_lab.cli.arguments import existing
from vae_lab.config import ConfigError, MetricsConfig, Run, config_folder, explain, is_complaint, register_resolvers
from vae_lab.config.terminal import say, shown, stop
from vae_lab.sweep import checks

MOST_COLUMNS = 4
"""The number of runs whose test metrics are shown in the terminal."""


def evaluate(arguments: Sequence[str]) -> None:
    """Measure finished runs again."""
    parser = argparse.ArgumentParser(
        prog="vae-lab evaluate",
        description="Measure the test metrics of finished runs from their weights, write them to each result.json, and "
        "show them. Folders may come from somebody else: no code of theirs is run.",
        epilog="examples: vae-lab evaluate outputs/study/vanilla-vanilla/seed-0; vae-lab evaluate outputs/study",
    )
    parser.add_argument(
        "folders", nargs="+", type=existing, metavar="FOLDER", help="outputs/<name>, or a cell's or run's"
    )
    parser.add_argument("--metrics", default="full", metavar="CHOICE", help="a file of conf/metrics (default: full)")
    parser.add_argument("--device", default="cpu", help="where it is measured: cpu, cuda, mps (default: cpu)")
    parser.add_argument("--data-root", metavar="FOLDER", help="the data set's files, if not where they were")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="NAME", help="a package of yours that a model is made of"
    )
    given = parser.parse_args(arguments)
    register_resolvers()
    try:
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            chosen = hydra.compose("train", [f"metrics={given.metrics}"], return_hydra_config=True)
            asked = Run.of(chosen).config.metrics
    except Exception as error:
        if not is_complaint(error) and not isinstance(error, ConfigError):
            raise
        stop(error if isinstance(error, ConfigError) else explain(error))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for the packages that are allowed
    if not show_evaluation(given.folders, asked, given.allow, given.device, given.data_root):
        raise SystemExit(1)


def show_evaluation(
    folders: Sequence[Path], asked: MetricsConfig, allow: Sequence[str], device: str, root: str | None
) -> bool:
    """Measure the finished runs under these folders and show their test metrics; False if one could not be measured."""
    from vae_lab.report.terminal import metrics_table  # pandas, scipy and matplotlib take seconds
    from vae_lab.study.gather import StudyError, find
    from vae_lab.trained.foreign import LoadError

    errors = Console(stderr=True)
    try:
        found = find(folders)
    except StudyError as error:
        say(f"Nothing measured: {error}", error=True)
        return False
    checks.check_import("torch")
    from vae_lab.data import DataError
    from vae_lab.trained.evaluate import evaluate as measure

    measured: list[tuple[str, results.Result]] = []
    for folder in track(found, "measuring", console=errors, transient=True, disable=not errors.is_terminal):
        try:
            measured.append((shown(folder), measure(folder, asked, allow, device, root)))
        except (LoadError, DataError, OSError) as error:
            say(f"Not measured: {error}", error=True)
        except Exception as error:  # untrusted files may hold anything, and the other runs are still measured
            text = f"{shown(folder)} ({type(error).__name__}: {error})"
            say(f"Not measured: {text}", error=True)
    if measured:
        Console().print(metrics_table(measured[:MOST_COLUMNS]))
        if len(measured) > MOST_COLUMNS:
            Console().print(f"and {len(measured) - MOST_COLUMNS} more runs, in their result.json")
        names = " ".join(dict.fromkeys(shown(folder.parents[1]) for folder in found))
        say(f"The report with them: vae-lab report {names}")
    return len(measured) == len(found)
