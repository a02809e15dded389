"""Build the module of a block."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vae_lab import compat, config
from vae_lab.config.vocabulary import FitError, Place, Shape, describe
from vae_lab.model.blocks.modules import Skip


def build(block: config.AnyBlock, place: Place) -> nn.Module:
    """Build the module of one block; `networks` builds lists of blocks.

    Raises:
        FitError: if the block does not accept its input shape.
    """
    if isinstance(block, config.ForeignBlock):
        module = config.build(block)
        if not isinstance(module, nn.Module):
            raise FitError(f"a block must be a torch.nn.Module, but is a {type(module).__name__}")
        return module
    if block.takes == "map" and len(place.shape) != 3:
        raise FitError(
            f"'{block.word}' works on a map (channels × height × width), but gets {describe(place.shape)}; "
            "put it before 'dense' or 'global_pool', or an 'unflatten' before it"
        )
    built: nn.Module = block.build(Place(place.shape, place.style.of(block), place.size))
    return built


def complete(module: nn.Module, shape: Shape) -> nn.Module:
    """The module with all weights initialised: torch's lazy classes create theirs at their first input.

    That input has shape `shape` and lies on the meta device, because intermediate maps may be of any size. The other
    weights are moved to the meta device for the forward pass and restored after it.
    """
    lazy = [part for part in module.modules() if compat.is_lazy_module(part)]
    if not lazy:
        return module
    aside: list[tuple[nn.Module, str, torch.Tensor]] = []

    def set_aside(part: nn.Module, *_: Any) -> None:
        for name, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if compat.is_lazy_tensor(tensor) or tensor.is_meta:
                continue
            aside.append((part, name, tensor))
            empty = tensor.detach().to("meta")
            is_weight = isinstance(tensor, nn.Parameter)
            setattr(part, name, nn.Parameter(empty, tensor.requires_grad) if is_weight else empty)

    for part in module.modules():
        set_aside(part)
    # These hooks run after torch's own, which create the weights.
    hooks = [part.register_forward_pre_hook(set_aside) for part in lazy]
    try:
        with torch.device("meta"), torch.no_grad():
            module.eval()(torch.zeros(2, *shape))
    finally:
        for hook in hooks:
            hook.remove()
        for part, name, tensor in aside:
            setattr(part, name, tensor)
    module.train()
    return module


def enclose(block: config.Group, modules: Sequence[nn.Module], before: Shape, after: Shape) -> nn.Module:
    """The module of a list of blocks, given the modules of the blocks.

    Raises:
        FitError: if the list has a skip connection but changes the shape.
    """
    body = nn.Sequential(*modules)
    if not block.skip:
        return body
    if before != after:
        raise FitError(
            f"'skip: true' adds what comes in, {describe(before)}, to what comes out, {describe(after)}; "
            "they must be alike: change the width of the last block or the blocks that set the size, or remove the skip"
        )
    return Skip(body)
