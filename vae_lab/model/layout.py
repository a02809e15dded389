"""The memory layout of a model in training: channels last in our layers, contiguous in a user's modules.

Convolutions are fastest channels last. Other code often relies on contiguous tensors, as `x.view(len(x), -1)`,
`weight.view(out, -1)` and `parameters_to_vector` do. So images, decoder outputs and all that a user's module is given
are contiguous, as on the meta device, where models are checked.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

OURS = ("vae_lab.", "torch.nn.")
"""Packages whose modules work in any layout."""
Model = TypeVar("Model", bound=nn.Module)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def channels_last(model: Model, *, weights: bool = True) -> Model:
    """Let the convolutions of our modules compute channels last, and give a user's modules contiguous tensors.

    Args:
        model: changed in place, and returned.
        weights: whether weights may be channels last too, which saves their conversion in each step. The results are
            the same. Say False if a user's code reads the weights.
    """
    foreign = [*_outermost_foreign(model)]
    theirs = {id(one) for module in foreign for part in module.modules() for one in (part, *part.parameters())}
    for module in foreign:
        module.register_forward_pre_hook(_with_contiguous_inputs)
        module.register_forward_hook(_with_contiguous_gradient)
    for module in model.modules():
        if id(module) in theirs:
            continue
        if not weights and isinstance(module, CONVOLUTIONS):
            module.register_forward_pre_hook(_with_channels_last_inputs)
        for weight in module.parameters(recurse=False) if weights else ():
            if weight.dim() == 4 and id(weight) not in theirs:
                weight.data = weight.data.to(memory_format=torch.channels_last)
    return model


def _outermost_foreign(module: nn.Module) -> Iterator[nn.Module]:
    if not type(module).__module__.startswith(OURS):
        yield module
        return
    for child in module.children():
        yield from _outermost_foreign(child)


def _with_contiguous_inputs(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.contiguous() if isinstance(one, Tensor) else one for one in given)


def _with_contiguous_gradient(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]  # in torch


def _with_channels_last_inputs(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *further = given
    return images.to(memory_format=torch.channels_last), *further
