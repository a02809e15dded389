"""One of the processes that train a run together: `python -m vae_lab.rank`, started by `vae_lab.group` alone."""

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
from vae_lab.config import register_resolvers
from vae_lab.training import processes

LONGEST_WAIT = timedelta(days=30)
"""How long a process waits for the others: `group` ends it when one of them dies."""


def main() -> None:
    """Read what the run is, take part in it, and leave the outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job: processes.Job = pickle.load(sys.stdin.buffer)  # of the process that started this one
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    register_resolvers()
    _listen(job)
    outcome = processes.Outcome()
    try:
        _take_part(job, outcome)
    except BaseException as error:
        outcome.error = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        outcome.traceback = traceback.format_exc()
        outcome.is_consequence = _is_consequence(error)
        processes.leave(job, outcome)
        _end(1)
    processes.leave(job, outcome)
    _end(0)


def _end(code: int) -> None:
    """End at once: what is left to do at a usual end waits for processes that may be gone."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _end_with_the_starter() -> None:
    """Wait until the process that started this one has gone, and end with all that was started here."""
    with suppress(OSError):
        while os.read(0, 1):
            pass
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), signal.SIGKILL)  # of a session of its own
    os._exit(1)


def _listen(job: processes.Job) -> None:
    """Log as the process that started this one does; a further process tells errors only, once each is enough."""
    if job.rank > 0:
        logging.basicConfig(level=logging.ERROR)
        warnings.simplefilter("ignore")
    elif job.logging is not None:
        configure_log(OmegaConf.create(dict(job.logging)))


def _take_part(job: processes.Job, outcome: processes.Outcome) -> None:
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
        _talk_within_this_machine()
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


def _talk_within_this_machine() -> None:
    """Let gloo use the loopback: it would else ask what the machine's name stands for, which need not be known."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _is_consequence(error: BaseException) -> bool:
    """Whether an error says only that another process has gone."""
    told = str(error).lower()
    gone = ("connection closed by peer", "connection reset", "socket", "broken pipe", "gloo", "nccl", "remote process")
    return isinstance(error, RuntimeError) and any(word in told for word in gone)


if __name__ == "__main__":
    main()
