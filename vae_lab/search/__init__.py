"""Hyperparameter search: a Hydra sweeper that lets optuna choose the runs. optuna is imported only when it is needed.

The next trial depends only on the record of earlier trials (`outputs/<name>/search.json`) and the seed. A killed search
resumes as if it had not been interrupted.
"""

from vae_lab.search.sweeper import Planned, is_chosen, plan, register
from vae_lab.study.searches import load

__all__ = ["Planned", "is_chosen", "load", "plan", "register"]
