"""The search of hyperparameters: a sweeper of Hydra's that lets optuna choose the runs. optuna is imported when asked.

What is tried next depends on nothing but the record of what was tried (`outputs/<name>/search.json`) and the seed:
a search that was killed goes on as if it had not been.
"""

from vae_lab.search.sweeper import Planned, is_chosen, plan, register
from vae_lab.study.searches import load

__all__ = ["Planned", "is_chosen", "load", "plan", "register"]
