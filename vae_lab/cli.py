"""The commands. torch is imported only once the configuration is known to be good."""

import argparse
import io
import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig
from rich.console import Console

from vae_lab import __version__, launchers, plan, results, search, sweep, using
from vae_lab.config import PACKAGE, ConfigError, Position, Problem, Run, explain, is_complaint, register_resolvers

log = logging.getLogger(__name__)

USAGE = """\
vae-lab, version {version}: compare variational autoencoders

  vae-lab train [OVERRIDES]   train one model, or with -m a grid of them
  vae-lab train --help        the parts and values to choose from
  vae-lab describe [OVERRIDES]
                              the layers of one model: shapes, parameters, FLOPs
  vae-lab report FOLDER…      the report of one sweep or several: tables, figures, which differences are real
  vae-lab evaluate FOLDER…    the test metrics of finished runs, all of them, from their weights
  vae-lab generate RUN --what … --out FILE
                              pictures: samples, reconstructions, walks through the latent space
  vae-lab export RUN --format …
                              a model as files for other programs (ONNX and others), with a model card

`vae-lab COMMAND --help` says more about each.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, `sys.argv` unless given; ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a table is worth more than its lines
    command, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command in COMMANDS:
        try:
            COMMANDS[command](rest)
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            raise SystemExit(130) from None
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
    if any(re.match(r"[~+]*hydra\.callbacks(\.vae_lab\b|=|$)", word) for word in overrides):
        sweep.stop(WITHOUT_US)
    sys.argv[1:] = overrides  # where Hydra looks
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a class in the user's folder can be a _target_
    register_resolvers()
    try:
        launchers.prepare(overrides)
        search.register()
    except ConfigError as error:
        sweep.stop(error)
    # Hydra then raises its errors instead of printing them; a user who sets it wants the traceback.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with _stoppable():
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")(job)()
    except Stopped as ending:
        print(f"\n{_kept(ending)}", file=sys.stderr)
        raise SystemExit(128 + ending.number) from None
    except Exception as error:
        # Hydra's complaints about missing files are OSErrors too, with no number.
        unwritten = next((one for one in (error, error.__cause__) if isinstance(one, OSError) and one.errno), None)
        if wants_traceback:
            raise
        if unwritten:
            sweep.give_up(unwritten)
        if sweep.launched():
            sweep.end_without(launchers.failure(error))
        if not is_complaint(error):
            raise
        launchers.offer(error)
        sweep.stop(explain(error))


WITHOUT_US = ConfigError(
    Problem("hydra.callbacks.vae_lab", "must stay as it is: it checks the runs, and sums them up at the end")
)


class Stopped(BaseException):
    """A signal that asks to end.

    No Exception, lest it be taken for a failed run, and no KeyboardInterrupt, after which Lightning ends the process.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.run: Run | None = None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT or SIGTERM, and end at once at the second."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stopping = True
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python does not let them be set
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kept(ending: Stopped) -> str:
    """What a signal leaves, and how to go on."""
    stopped = f"Stopped by {signal.Signals(ending.number).name}"
    run = ending.run
    if run is None:
        return f"{stopped}. Runs that have finished are kept; the same command with the same name goes on."
    of_it = ""
    if not plan.finished(run):  # else its test metrics were about to be completed
        epochs = plan.stage(run).epochs
        part = f"the first {epochs} of {run.config.trainer.max_epochs} epochs" if epochs else "nothing yet"
        of_it = f" and, of {run}, {part}"
    words = [word for word in sys.argv[1:] if not word.startswith("name=")]
    program = "vae-lab train" if Path(sys.argv[0]).name == "vae-lab" else f"python {sys.argv[0]}"
    command = f"{program} {shlex.join([*words, f'name={run.config.name}'])}"
    return f"{stopped}. Kept are the runs that have finished{of_it}. To go on:\n  {command}"


DESCRIBE = """\
Show the layers of a model with their output shapes, parameters and FLOPs. Nothing is trained or written.

  {command} [OVERRIDES] [--config-dir FOLDER]

OVERRIDES are those of training, for one run: encoder=resnet decoder=resize data.image_shape=[3,32,32] match=flops
"""


def describe(arguments: Sequence[str]) -> None:
    """Show the layers of the model that these words make."""
    if {"--help", "-h"} & {*arguments}:
        print(DESCRIBE.format(command="vae-lab describe"), end="")
        return
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    register_resolvers()
    try:
        run = _composed(arguments)
        sweep.check_import("torch")
        from vae_lab import describe as table
        from vae_lab.match import check_fit, matched

        sweep.tell_all([run], check_fit)
        match = matched(run.config)
        settings = match.config if match else run.config
        table.show(Console(), table.describe(settings), table.matching(settings, match))
    except Exception as error:
        if not is_complaint(error) and not isinstance(error, ConfigError):
            raise
        sweep.stop(error if isinstance(error, ConfigError) else explain(error))


ONE_MODEL = "describe shows one model: give each key one value, without -m"


def _composed(arguments: Sequence[str]) -> Run:
    """The run of these words, composed as training composes it."""
    parser = argparse.ArgumentParser(prog="vae-lab describe", add_help=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("overrides", nargs="*")
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if {"-m", "--multirun"} & {*unknown}:
        raise ConfigError(Problem("command line", ONE_MODEL))
    if unknown:
        raise ConfigError(Problem("command line", f"there is no flag {unknown[0]!r}; known: --config-dir, --help"))
    searched = []
    if given.config_dir is not None:
        folder = Path(given.config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(Problem("--config-dir", f"there is no folder {folder}"))
        searched = [f"hydra.searchpath=['file://{folder}']"]
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            composed = hydra.compose("train", [*given.overrides, *searched], return_hydra_config=True)
        except ConfigCompositionException as error:
            if "sweep over it" in str(error):
                raise ConfigError(Problem("command line", ONE_MODEL)) from error
            raise
        return Run.of(composed)


def config_folder() -> Path:
    """`conf/`: inside the package where it is installed, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def job(composed: DictConfig) -> float | None:
    """One run; returns the validation loss, which is what a searching sweeper minimises.

    Whatever goes wrong is told and not raised, so that the other runs of a multirun go on.
    """
    callback = HydraConfig.get().callbacks.get("vae_lab") or {}
    if not str(callback.get("_target_")).endswith(".SweepCallback"):
        sweep.stop(WITHOUT_US)
    run = Run.of(composed)
    position = Position.current()
    label = f"{position.number}/{position.runs}  {run}" if position else str(run)
    try:
        earlier = plan.finished(run)
        if earlier is not None and plan.measured(run, earlier):
            log.info("%s: finished before, kept", label)
            return earlier.val.total
        with results.locked(run.directory) as owner:
            if owner is not None:
                log.warning("%s: in the hands of %s, left alone", label, owner)
                return None
            earlier = plan.finished(run)
            if earlier is not None and plan.measured(run, earlier):
                log.info("%s: finished meanwhile by another process, kept", label)
                return earlier.val.total
            if earlier is not None:
                from vae_lab import evaluation  # imports torch

                added = evaluation.complete(run, earlier)
                log.info("%s: finished before, its test metrics completed", label)
                return added.val.total
            harm = plan.damage(run)
            if harm:
                log.warning("%s: done again, since %s", label, harm)
            from vae_lab import experiment, machine  # import torch

            machine.freeze_imports()
            result = experiment.run(run)
    except Stopped as ending:
        ending.run = run
        raise
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
        for warning in result.warnings:
            log.warning("%s: %s", label, warning)
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


def evaluate(arguments: Sequence[str]) -> None:
    """Measure runs that are there anew."""
    parser = argparse.ArgumentParser(
        prog="vae-lab evaluate",
        description="Measure the test metrics of finished runs from their weights, write them to each result.json, and "
        "show them. Folders may come from somebody else: no code of theirs is run.",
        epilog="examples: vae-lab evaluate outputs/study/vanilla-vanilla/seed-0; vae-lab evaluate outputs/study",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="outputs/<name>, or a cell's or run's")
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
        sweep.stop(error if isinstance(error, ConfigError) else explain(error))
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for the packages that are allowed
    if not sweep.show_evaluation(given.folders, asked, given.allow, given.device, given.data_root):
        raise SystemExit(1)


COMMANDS = {
    "train": train,
    "describe": describe,
    "report": report,
    "evaluate": evaluate,
    "generate": using.generate,
    "export": using.export,
}
