"""The commands. torch is imported only once the configuration is known to be good."""

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from vae_lab import __version__, sweep
from vae_lab.config import PACKAGE, Position, Run, explain, is_complaint, register_resolvers

log = logging.getLogger(__name__)

USAGE = """\
vae-lab, version {version}: compare variational autoencoders

  vae-lab train [OVERRIDES]   train one model, or with -m a grid of them
  vae-lab train --help        the parts and values to choose from
  vae-lab report FOLDER…      the report of one sweep or several: tables, figures, which differences are real

`vae-lab COMMAND --help` says more about each.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, `sys.argv` unless given; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a table is worth more than its lines
    command, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command in COMMANDS:
        COMMANDS[command](rest)
    elif command in ("--help", "-h", "help"):
        print(USAGE.format(version=__version__), end="")
    elif command == "--version":
        print(__version__)
    else:
        print(
            f"vae-lab: there is no command '{command}'\n\n{USAGE.format(version=__version__)}",
            file=sys.stderr,
            end="",
        )
        raise SystemExit(2)


def train(overrides: Sequence[str]) -> None:
    """Hand over to Hydra, and tell its complaints in our words."""
    sys.argv[1:] = overrides  # where Hydra looks
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a class in the user's folder can be a _target_
    register_resolvers()
    # Hydra then raises its errors instead of printing them; a user who sets it wants the traceback.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")(job)()
    except Exception as error:
        if wants_traceback or not is_complaint(error):
            raise
        sweep.stop(explain(error))
    except (KeyboardInterrupt, SystemExit) as ending:
        # Lightning ends an interrupted training by exit(1).
        if isinstance(ending, SystemExit) and not isinstance(ending.__context__, KeyboardInterrupt):
            raise
        print(
            "\nInterrupted. The same command with the same name keeps the runs that have finished.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def config_folder() -> Path:
    """`conf/`: inside the package where it is installed, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def job(composed: DictConfig) -> float | None:
    """One run; returns the validation loss, which is what a searching sweeper minimises.

    Whatever goes wrong is told and not raised, so that the other runs of a multirun go on.
    """
    run = Run.of(composed)
    position = Position.current()
    label = f"{position.number}/{position.runs}  {run}" if position else str(run)
    try:
        earlier = sweep.finished(run)
        if earlier is not None:
            log.info("%s: finished before, kept", label)
            return earlier.val.total
        from vae_lab import experiment  # imports torch

        result = experiment.run(run)
    except Exception as error:  # the run's own errors are in its result; this is about its files
        log.error("%s: failed, %s: %s", label, type(error).__name__, error, exc_info=not isinstance(error, OSError))
        return None
    if result.finished:
        log.info(
            "%s: total %.4f, reconstruction %.4f, KL %.4f in %.1f s",
            label,
            result.train.total,
            result.train.reconstruction,
            result.train.kl,
            result.timing.train_seconds,
        )
    else:
        log.error("%s: failed, %s", label, result.error)
    return result.val.total


def report(arguments: Sequence[str]) -> None:
    """Write the report of runs that are there."""
    parser = argparse.ArgumentParser(
        prog="vae-lab report",
        description="Write the report of one sweep, or of several together, from the files that their runs left.",
        epilog="example: vae-lab report outputs/five_seeds",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="outputs/<name>, or a cell's or run's")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes (default: outputs/<name>/report)")
    parser.add_argument(
        "--all-pictures", action="store_true", help="figures for every cell, not only for the first twelve"
    )
    given = parser.parse_args(arguments)
    if not sweep.show_report(given.folders, given.out, all_pictures=given.all_pictures):
        raise SystemExit(1)


COMMANDS = {"train": train, "report": report}
