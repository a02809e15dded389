"""The widths of a network, and networks of the same structure with others."""

import math
from collections.abc import Mapping
from typing import Any

from vae_lab.config.base import WIDEST
from vae_lab.config.schema import Config, Network
from vae_lab.config.vocabulary import AnyBlock, Block, Group, leaves

Widths = Mapping[int, int]
"""A width of the architecture file to what stands for it, wherever it appears in the network."""


def scaled(config: Config) -> Config:
    """The configuration whose networks have the widths that `encoder.width` and `decoder.width` ask for."""
    changed: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        network = getattr(config, side)
        if isinstance(network, Network) and network.width is not None:
            widths = times(multiples_of(side, network), network.width)
            changed[side] = with_widths(network.model_copy(update={"width": None}), widths)
    return config.model_copy(update=changed) if changed else config


def times(multiples: Mapping[int, int], factor: float) -> dict[int, int]:
    """Each width, multiplied by one factor and rounded to what must divide it."""
    return {
        width: min(max(least(width, step), round(width * factor / step)), WIDEST // step) * step
        for width, step in multiples.items()
    }


def multiples_of(side: str, network: Any) -> dict[int, int]:
    """Each width of a network, and what must divide it: heads and groups before and behind."""
    multiples: dict[int, int] = {}
    before = None
    blocks = network.blocks if isinstance(network, Network) else []
    for _, block in leaves(blocks, side):
        if not isinstance(block, Block):
            continue
        if before is not None:
            multiples[before] = math.lcm(multiples[before], block.divisor_before())
        if block.scales:
            multiples[block.value] = math.lcm(multiples.get(block.value, 1), block.divisor())
            before = before if block.keeps_channels else block.value
    return dict(sorted(multiples.items()))


def with_widths(network: Any, widths: Widths) -> Any:
    """The network, each block's width replaced by what stands for it."""
    if not widths:
        return network

    def rewidened(block: AnyBlock) -> AnyBlock:
        if isinstance(block, Group):
            return block.model_copy(update={"blocks": [*map(rewidened, block.blocks)]})
        if isinstance(block, Block) and block.scales:
            return block.model_copy(update={block.word: widths[block.value]})
        return block

    return network.model_copy(update={"blocks": [*map(rewidened, network.blocks)]})


def least(width: int, step: int) -> int:
    """How many steps a width keeps at least: of one channel group and layer normalisation leave nothing."""
    return math.ceil(min(width, 2) / step)
