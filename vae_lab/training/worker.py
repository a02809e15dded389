"""One of the processes that train a run together; only `vae_lab.training.processes` starts it."""

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from datetime import timedelta

from hydra.core.utils import configure_log
from omegaconf import OmegaConf

from vae_lab import results
from vae_lab.config import Inherited, register_resolvers
from vae_lab.config.terminal import protect_streams
from vae_lab.training import processes

LONGEST_WAIT = timedelta(days=30)
"""Timeout of the process group. It is long, because `processes` ends all processes when one dies."""


def main() -> None:
    """Read the job, train this process's part of the run, and write the outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job: processes.Job = pickle.load(sys.stdin.buffer)  # from the parent process
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    Inherited.here = job.inherited
    protect_streams()
    register_resolvers()
    _set_up_logging(job)
    outcome = processes.Outcome()
    try:
        _train(job, outcome)
    except BaseException as error:
        outcome.error = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        outcome.traceback = traceback.format_exc()
        outcome.is_consequence = _is_consequence(error)
        processes.leave(job, outcome)
        _exit_now(1)
    processes.leave(job, outcome)
    _exit_now(0)


def _exit_now(code: int) -> None:
    """Exit at once: a normal exit would wait for processes that may have died."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _exit_with_parent() -> None:
    """Wait until the parent process ends, then kill this process and its children."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), signal.SIGKILL)  # this process has its own session
    os._exit(1)


def _set_up_logging(job: processes.Job) -> None:
    """Log as the parent process does. Processes other than the first log errors only, to avoid duplicates."""
    if job.rank > 0:
        logging.basicConfig(level=logging.ERROR)
        warnings.simplefilter("ignore")
    elif job.logging is not None:
        configure_log(OmegaConf.create(dict(job.logging)))


def _train(job: processes.Job, outcome: processes.Outcome) -> None:
    import torch
    from torch import distributed

    from vae_lab.data.devices import on_gpu
    from vae_lab.training import runner
    from vae_lab.training.callbacks import History, Row
    from vae_lab.training.machine import freeze_imports

    freeze_imports()
    world_size = job.settings.trainer.processes
    torch.set_num_threads(job.settings.trainer.threads)
    gpu = on_gpu(job.settings)
    if not gpu:
        _use_loopback()
    distributed.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"file://{job.exchange / 'meeting'}",
        rank=job.rank,
        world_size=world_size,
        timeout=LONGEST_WAIT,
    )

    history = History()

    def keep(rows: list[Row]) -> None:
        results.write_history(job.run.directory, rows)
        outcome.history = history.state_dict()
        processes.leave(job, outcome)

    if job.rank == 0:
        history.on_epoch = keep
    outcome.measured = runner.attempt(job.run, job.settings, history, goes_on=job.goes_on)


def _use_loopback() -> None:
    """Let gloo use the loopback interface. By default it resolves the host name, which can fail."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _is_consequence(error: BaseException) -> bool:
    """Whether an error only says that another process has ended."""
    message = str(error).lower()
    signs = ("connection closed by peer", "connection reset", "socket", "broken pipe", "gloo", "nccl", "remote process")
    return isinstance(error, RuntimeError) and any(word in message for word in signs)


if __name__ == "__main__":
    main()
