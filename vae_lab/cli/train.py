"""`vae-lab train`: one run, or with -m a sweep of them, by Hydra."""

import logging
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vae_lab import results, search
from vae_lab.cli.words import Words, prefer
from vae_lab.config import ConfigError, Position, Problem, Run, config_folder, explain, is_complaint, register_resolvers
from vae_lab.config.terminal import say, stop, train_command
from vae_lab.sweep import callback, launchers
from vae_lab.training import plan

log = logging.getLogger(__name__)

CALLBACK_CHANGED = ConfigError(
    Problem("hydra.callbacks.vae_lab", "must stay as it is: it checks the runs, and sums them up at the end")
)


def train(typed: Sequence[str]) -> None:
    """Run Hydra, and report its errors in our own words."""
    if any(re.match(r"[~+]*hydra\.callbacks(\.vae_lab\b|=|$)", word) for word in typed):
        stop(CALLBACK_CHANGED)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a class in the user's folder can be a _target_
    register_resolvers()
    try:
        words = Words.read(typed)
        launchers.prepare(typed)
        search.register()
    except ConfigError as error:
        stop(error)
    prefer(words.config_dir)
    for sentence in words.shadows():
        say(sentence, error=True)
    sys.argv[1:] = [*words.overrides, *words.flags]  # Hydra reads them here
    # Hydra then raises its errors instead of printing them; a user who sets it wants the traceback.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with _stoppable():
            hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")(job)()
    except Stopped as ending:
        print(f"\n{_stop_message(ending, typed)}", file=sys.stderr)
        raise SystemExit(128 + ending.number) from None
    except Exception as error:
        # Hydra's errors about missing files are OSErrors too, but without a number.
        unwritten = next((one for one in (error, error.__cause__) if isinstance(one, OSError) and one.errno), None)
        if wants_traceback:
            raise
        if unwritten:
            callback.give_up(unwritten)
        if callback.launched():
            callback.end_without(launchers.failure(error))
        if not is_complaint(error):
            raise
        launchers.offer(error)
        stop(explain(error))


class Stopped(BaseException):
    """A signal that asks the process to stop.

    It is not an Exception, so that it does not count as a failed run. It is not a KeyboardInterrupt either, after which
    Lightning ends the process.
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
    if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_message(ending: Stopped, typed: Sequence[str]) -> str:
    """The message after a signal: what is kept, and how to resume."""
    stopped = f"Stopped by {signal.Signals(ending.number).name}"
    run = ending.run
    if run is None:
        return f"{stopped}. Runs that have finished are kept; the same command with the same name goes on."
    partial = ""
    if not plan.finished(run):  # else its test metrics were about to be completed
        epochs = plan.stage(run).epochs
        part = f"the first {epochs} of {run.config.trainer.max_epochs} epochs" if epochs else "nothing yet"
        partial = f" and, of {run}, {part}"
    words = [word for word in typed if not word.startswith("name=")]
    command = f"{train_command()} {shlex.join([*words, f'name={run.config.name}'])}"
    return f"{stopped}. Kept are the runs that have finished{partial}. To go on:\n  {command}"


def job(composed: DictConfig) -> float | None:
    """Train one run; returns the validation loss, which a search minimises.

    Errors are logged and not raised, so that the other runs of a multirun continue.
    """
    callback = HydraConfig.get().callbacks.get("vae_lab") or {}
    if not str(callback.get("_target_")).endswith(".SweepCallback"):
        stop(CALLBACK_CHANGED)
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
                from vae_lab.evaluation import runs  # imports torch

                added = runs.complete(run, earlier)
                log.info("%s: finished before, its test metrics completed", label)
                return added.val.total
            damage = plan.damage(run)
            if damage:
                log.warning("%s: done again, since %s", label, damage)
            from vae_lab.training import machine, runner  # import torch

            machine.freeze_imports()
            result = runner.run(run)
    except Stopped as ending:
        ending.run = run
        raise
    except Exception as error:  # the run's own errors are in its result; this one is about its files
        log.error("%s: failed, %s: %s", label, type(error).__name__, error, exc_info=not isinstance(error, OSError))
        return None
    if result.finished:
        losses = {"total": result.train.total, "reconstruction": result.train.reconstruction, "KL": result.train.kl}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in losses.items() if value is not None)
        log.info("%s: %s in %.1f s", label, shown, result.timing.train_seconds)
        for warning in result.warnings:
            log.warning("%s: %s", label, warning)
    else:
        log.error("%s: failed, %s", label, result.error)
    return result.val.total
