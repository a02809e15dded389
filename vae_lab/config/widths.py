"""The widths of a network, and the same network with other widths."""

import math
from collections.abc import Mapping
from typing import Any

from vae_lab.config.base import WIDEST
from vae_lab.config.schema import Config, Network
from vae_lab.config.vocabulary import AnyBlock, Block, Group, leaves

Widths = Mapping[int, int]
"""Maps a width of the architecture file to the width that replaces it throughout the network."""


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
    """Each width multiplied by one factor and rounded to a multiple of its divisor."""
    return {
        width: min(max(least(width, step), round(width * factor / step)), WIDEST // step) * step
        for width, step in multiples.items()
    }


def multiples_of(side: str, network: Any) -> dict[int, int]:
    """Each width of a network, and the divisor that the heads and groups before and after it require."""
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
    """The network with each block's width replaced."""
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
    """The minimum number of steps of a width: group and layer normalisation of one channel leave nothing."""
    return math.ceil(min(width, 2) / step)
