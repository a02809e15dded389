"""`vae-lab describe`: the layers of a model that is not trained."""

import os
import sys
from collections.abc import Sequence

import hydra
from hydra.errors import ConfigCompositionException
from rich.console import Console

from vae_lab.cli.words import Words, prefer
from vae_lab.config import ConfigError, Problem, Run, config_folder, explain, is_complaint, register_resolvers
from vae_lab.config.terminal import say, stop
from vae_lab.sweep import checks

DESCRIBE = """\
Show the layers of a model with their output shapes, parameters and FLOPs. Nothing is trained or written.

  {command} [OVERRIDES] [--config-dir FOLDER]

OVERRIDES are those of training, for one run: encoder=resnet decoder=resize data.image_shape=[3,32,32] match=flops
"""

ONE_MODEL = "describe shows one model: give each key one value, without -m"


def describe(arguments: Sequence[str]) -> None:
    """Show the layers of the model that these arguments define."""
    if {"--help", "-h"} & {*arguments}:
        print(DESCRIBE.format(command="vae-lab describe"), end="")
        return
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    register_resolvers()
    try:
        run = _composed(arguments)
        checks.check_import("torch")
        from vae_lab.model import describe as table
        from vae_lab.model.match import check_fit, matched

        checks.check_each([run], check_fit)
        match = matched(run.config)
        settings = match.config if match else run.config
        table.show(Console(), table.describe(settings), table.matching(settings, match))
    except Exception as error:
        if not is_complaint(error) and not isinstance(error, ConfigError):
            raise
        stop(error if isinstance(error, ConfigError) else explain(error))


def _composed(arguments: Sequence[str]) -> Run:
    """The run that these arguments define, composed as for training."""
    words = Words.read(arguments)
    if {"-m", "--multirun"} & {*words.flags}:
        raise ConfigError(Problem("command line", ONE_MODEL))
    if words.flags:
        raise ConfigError(Problem("command line", f"there is no flag {words.flags[0]!r}; known: --config-dir, --help"))
    prefer(words.config_dir)
    for sentence in words.shadows():
        say(sentence, error=True)
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        try:
            composed = hydra.compose("train", words.overrides, return_hydra_config=True)
        except ConfigCompositionException as error:
            if "sweep over it" in str(error):
                raise ConfigError(Problem("command line", ONE_MODEL)) from error
            raise
        return Run.of(composed)
