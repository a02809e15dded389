"""What a configuration may say, and what makes a run. Imports no torch, so that errors come at once."""

from vae_lab.config.base import Node, PartialNode
from vae_lab.config.errors import ConfigError, Problem, choices, explain, is_complaint
from vae_lab.config.runs import PACKAGE, SWEEP_RUNS, Position, Run, cell_name, identifying, register_resolvers, words
from vae_lab.config.schema import NOT_IDENTIFYING, Config, TrainerConfig, flatten
from vae_lab.config.targets import build, check_targets, check_trainer
from vae_lab.config.validation import validate
from vae_lab.config.vocabulary import (
    BLOCKS,
    AnyBlock,
    Block,
    Conv,
    Dense,
    Down,
    EncDec,
    Unflatten,
    Up,
    block_name,
)

__all__ = [
    "BLOCKS",
    "NOT_IDENTIFYING",
    "PACKAGE",
    "SWEEP_RUNS",
    "AnyBlock",
    "Block",
    "Config",
    "ConfigError",
    "Conv",
    "Dense",
    "Down",
    "EncDec",
    "Node",
    "PartialNode",
    "Position",
    "Problem",
    "Run",
    "TrainerConfig",
    "Unflatten",
    "Up",
    "block_name",
    "build",
    "cell_name",
    "check_targets",
    "check_trainer",
    "choices",
    "explain",
    "flatten",
    "identifying",
    "is_complaint",
    "register_resolvers",
    "validate",
    "words",
]
