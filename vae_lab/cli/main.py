"""`vae-lab COMMAND`: run a command."""

import difflib
import os
import sys
from collections.abc import Sequence

from vae_lab import __version__
from vae_lab.cli.describe import describe
from vae_lab.cli.evaluate import evaluate
from vae_lab.cli.export import export
from vae_lab.cli.generate import generate
from vae_lab.cli.report import report
from vae_lab.cli.train import train
from vae_lab.config import ConfigError, Problem
from vae_lab.config.terminal import printing, say, stop
from vae_lab.sweep import checks

COMMANDS = {
    "train": train,
    "describe": describe,
    "report": report,
    "evaluate": evaluate,
    "generate": generate,
    "export": export,
}

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
    os.environ["MPLBACKEND"] = "agg"  # figures are only written to files
    with printing():
        _run(sys.argv[1:] if arguments is None else list(arguments))


def _run(arguments: Sequence[str]) -> None:
    command, *rest = arguments or ["--help"]
    if command == "train" and rest and rest[0] in COMMANDS:
        stop(ConfigError(Problem("command line", f"{rest[0]} is a command of its own: vae-lab {' '.join(rest)}")))
    if command in COMMANDS:
        _check_folder()
        try:
            COMMANDS[command](rest)
        except KeyboardInterrupt:
            print("\nInterrupted.", file=sys.stderr)
            raise SystemExit(130) from None
        except (ImportError, MemoryError) as error:
            say(f"Stopped: {checks.import_problem(error)}", error=True)
            raise SystemExit(1) from None
    elif command in ("--help", "-h", "help"):
        print(USAGE.format(version=__version__), end="")
    elif command == "--version":
        print(__version__)
    else:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        if close:
            meant = f"; did you mean 'vae-lab {close[0]}'?"
        else:
            meant = f"; did you mean 'vae-lab train {command}'?" if "=" in command or command in ("-m", "-cd") else ""
        usage = USAGE.format(version=__version__)
        print(f"vae-lab: there is no command '{command}'{meant}\n\n{usage}", file=sys.stderr, end="")
        raise SystemExit(2)


def _check_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        say(f"The working directory cannot be used ({error.strerror}): cd to one that exists", error=True)
        raise SystemExit(1) from None
