"""Scripts in processes of their own, forked from one that has the large imports: new processes, some seconds earlier.

`run` is used as `subprocess.run` is. The file itself, run as a script, is the process that forks.
"""

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import IO, NoReturn

PRELOADED = ("lightning.pytorch", "torch.utils.tensorboard", "torchvision", "vae_lab.report", "vae_lab.training.trial")


def run(script: Path, *words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script; its output and its exit code, negative for a signal."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        order = {"argv": [str(script), *words], "cwd": str(cwd), "env": {**env}, "out": str(out), "err": str(err)}
        _pipe(server.stdin).write(json.dumps(order).encode() + b"\n")
        _pipe(server.stdin).flush()
        code = int(_pipe(server.stdout).readline())
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
    return subprocess.CompletedProcess(order["argv"], code, *texts)


@cache
def _server() -> subprocess.Popen[bytes]:
    server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(server.kill)
    return server


def _pipe(found: IO[bytes] | None) -> IO[bytes]:
    assert found is not None
    return found


def _serve() -> None:
    sys.path.pop(0)  # this folder
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin.buffer:
        pid = os.fork()
        if not pid:
            _become(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(argv: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> NoReturn:
    """Be the process of a script, to its end."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path, mode in ((0, os.devnull, os.O_RDONLY), (1, out, flags), (2, err, flags)):
        os.dup2(os.open(path, mode), number)
    sys.argv[:] = argv
    sys.path[:0] = [str(Path(argv[0]).parent), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_path(argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    _serve()
