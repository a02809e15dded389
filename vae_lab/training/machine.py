"""The machine that a run's figures were measured on: its name, its memory, the commit of the code."""

import atexit
import ctypes
import gc
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import lightning
import torch

from vae_lab import config, results
from vae_lab.config import Config
from vae_lab.data import shards
from vae_lab.data.devices import on_gpu


def environment(settings: Config) -> results.Environment:
    """What a run's results depend on besides its configuration."""
    return results.Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        lightning=lightning.__version__,
        device=device_name(settings),
        threads=settings.trainer.threads,
        processes=settings.trainer.processes,
        commit=_commit(),
    )


def device_name(settings: Config) -> str:
    """The name of the GPU or processor that trains a run."""
    return torch.cuda.get_device_name() if on_gpu(settings) else _processor()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this package's own checkout; None where it was installed."""
    root = config.PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


# Parameters of mallopt(3), and the largest mmap threshold that it accepts.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**25
TUNABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensors; False if it is not glibc, or the user has set it.

    By default glibc returns large blocks to the system, and each training step requests them again, page by page: about
    3,000 page faults, a fifth of a step's time. `reset_peak_memory` returns the memory of finished runs.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in TUNABLES):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def search_no_gpu() -> None:
    """Without a GPU, stop torch's optimisers from searching for the GPU driver's library in every step.

    Lightning asks torch to search there instead of starting the driver. Without a GPU there is no driver to start.
    """
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


@cache
def freeze_imports() -> None:
    """Exclude all current objects, mostly modules, from garbage collection: each full collection takes 0.15 s.

    Runs once per process. It is for the commands and their workers, which hold no other objects yet; a notebook may
    hold objects that should be collected later.
    """
    gc.freeze()
    atexit.register(gc.unfreeze)


def reset_peak_memory() -> None:
    """Reset the peak of memory: on Linux the peak of the process, on a GPU that of the allocator."""
    gc.collect()  # the trainer and module of an earlier run refer to each other
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)  # return the freed memory to the system
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes since the last reset: allocated on a GPU, resident elsewhere; None if unknown.

    If several processes train a run, it is their sum; all of them call it.
    """
    own = _own_peak_memory(device)
    every = [memory for (memory,) in shards.gathered([-1 if own is None else own])]
    return None if min(every) < 0 else int(sum(every))


def _own_peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux" or not os.access("/proc/self/clear_refs", os.W_OK):
        return None
    found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
