"""Optimisers beside those of torch."""

from collections.abc import Callable
from typing import Any

import torch

from vae_lab import compat

SMALLEST = 1e-7
"""Gradients shorter than this are not scaled to length 1."""


class NormalizedAdam(torch.optim.Adam):
    """Adam (Kingma & Ba 2015) on gradients of length 1: each tensor's gradient is first divided by its Euclidean norm.

    So the moments of a tensor do not depend on how large its gradients are, and batches with large ones do not outweigh
    the others. Clipping gradients before changes nothing. Arguments are those of `torch.optim.Adam`.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        compat.unscale_before_steps(self)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; a closure computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.div_(torch.linalg.vector_norm(weight.grad).clamp_(min=SMALLEST))
        super().step()
        return loss
