"""Networks of equal cost: scale the widths of a variant until it costs as much as its reference."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from vae_lab import config
from vae_lab.config import WIDEST, Config, ConfigError, Problem, Widths, least, multiples_of, times, with_widths
from vae_lab.config.vocabulary import FitError
from vae_lab.model import vae
from vae_lab.model.blocks.layers import shapes_only

REACH = 4
"""The most steps by which a second width is moved when changing one width is not enough."""


class Matched(NamedTuple):
    """A configuration with the widths found, and the cost of each half divided by its reference's cost."""

    config: Config
    ratios: dict[vae.Side, float]


def matched(settings: Config) -> Matched | None:
    """Scale encoder and decoder, independently, to the cost of their references; None if `match.cost` is `none`.

    All widths of a half are multiplied by one factor. Where rounding makes that too coarse, one or two widths are
    changed separately, each at all its occurrences. The same configuration always gives the same widths.

    Raises:
        ConfigError: if `match.tolerance` cannot be met, with the nearest cost that can be reached.
    """
    if settings.match.cost == "none":
        return None
    problems: list[Problem] = []
    networks: dict[str, Any] = {}
    ratios: dict[vae.Side, float] = {}
    for side in vae.SIDES:
        try:
            networks[side], ratios[side] = _half(side, _Frozen(settings))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return Matched(config.validate(settings.container() | networks), ratios)


def check_fit(settings: Config) -> None:
    """Check that the blocks of a configuration exist and fit, and that matching succeeds if it is configured.

    Raises:
        ConfigError: naming each block that does not fit, or the nearest cost that can be reached.
    """
    config.check_targets(settings, ("encoder", "latent", "posterior", "prior", "decoder", "likelihood"))
    vae.check_fit(settings)
    found = matched(settings)
    if found is not None:
        vae.check_fit(found.config)


def cost_of(side: vae.Side, settings: Config, distributions: vae.Distributions) -> int:
    """The cost of half of a model: its parameters, or the FLOPs of one image through it, as `match.cost` selects."""
    with shapes_only():
        half = vae.build_half(side, settings, distributions).eval()
        if settings.match.cost == "parameters":
            return sum(parameter.numel() for parameter in half.parameters())
        latent_shape = distributions.posterior.latent_shape
        example = torch.empty(1, *(settings.data.image_shape if side == "encoder" else latent_shape))
        with FlopCounterMode(display=False) as counter:
            half(example)
        return counter.get_total_flops()


class _Frozen:
    """A configuration as a cache key: equal if all sections that matching depends on are equal."""

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self._key = settings.model_dump_json(
            include={"encoder", "decoder", "latent", "posterior", "prior", "likelihood", "match"}
        ) + str(settings.data.image_shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Frozen) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=256)
def _half(side: vae.Side, frozen: _Frozen) -> tuple[dict[str, Any], float]:
    settings = frozen.settings
    network, references = getattr(settings, side), settings.match.references
    assert references is not None, "config.Run looks them up"
    with shapes_only():
        distributions = vae.build_distributions(settings)
    try:
        goal = cost_of(side, settings.model_copy(update={side: getattr(references, side)}), distributions)
    except FitError as error:
        problem = f"is {getattr(settings.match, side)!r}, which does not fit: {error}"
        raise ConfigError(Problem(f"match.{side}", problem)) from error
    multiples = multiples_of(side, network)

    @functools.cache
    def cost(new: tuple[int, ...]) -> int:
        widths = dict(zip(multiples, new, strict=True))
        try:
            return cost_of(side, settings.model_copy(update={side: with_widths(network, widths)}), distributions)
        except FitError as error:
            key, _, text = str(error).partition(": ")
            problem = (
                f"with the widths that match tries ({_widths_text(widths)}) {text}; the channels of the images and "
                "of a class that is named by _target_ stay as they are, and no width that is scaled can be bound to "
                "them"
            )
            raise ConfigError(Problem(key, problem)) from error

    found = _search(multiples, cost, goal, settings.match.tolerance)
    widths = dict(zip(multiples, found, strict=True))
    ratio = cost(found) / goal if goal else math.inf
    if abs(ratio - 1) > settings.match.tolerance:
        raise ConfigError(_out_of_reach(side, settings, widths, cost(found), goal))
    return with_widths(network, widths).model_dump(mode="json"), ratio


def _out_of_reach(side: vae.Side, settings: Config, widths: Widths, nearest: int, goal: int) -> Problem:
    match = settings.match
    unit = "parameters" if match.cost == "parameters" else "FLOPs an image"
    ratio = nearest / goal if goal else math.inf
    how = f"with widths {_widths_text(widths)}" if widths else "as it is, since it has no widths that vae_lab knows"
    off = f"{100 * abs(ratio - 1):.3g} % {'more' if ratio > 1 else 'less'}"
    allowed = math.ceil(abs(ratio - 1) * 1000) / 1000
    wider = f", or allow the difference (match.tolerance={allowed})" if allowed < 1 else ""
    return Problem(
        side,
        f"cannot be brought within {100 * match.tolerance:g} % of the {goal:,} {unit} of {getattr(match, side)!r}; the "
        f"nearest is {nearest:,} ({off}) {how}; take another reference (match.{side}=…){wider}",
    )


def _widths_text(widths: Widths) -> str:
    return ", ".join(f"{old}→{new}" for old, new in widths.items())


def _search(
    multiples: Mapping[int, int], cost: Callable[[tuple[int, ...]], int], goal: int, tolerance: float
) -> tuple[int, ...]:
    """Among the widths found within the tolerance those whose proportions change least, else the nearest found.

    The cost grows with every width, so each step is a bisection.
    """

    def scaled(factor: float) -> tuple[int, ...]:
        return tuple(times(multiples, factor).values())

    def score(widths: tuple[int, ...]) -> tuple[int, float]:
        off = abs(cost(widths) - goal)
        factors = [math.log(new / old) for new, old in zip(widths, multiples, strict=True)]
        return (0, max(factors) - min(factors)) if off <= tolerance * goal else (1, float(off))

    def single(start: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [
            near for index, step in enumerate(multiples.values()) for near in _around(start, index, step, cost, goal)
        ]

    if not multiples:
        return ()
    low, high = _bracket(lambda factor: cost(scaled(factor)), goal)
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(scaled(middle)) <= goal else (low, middle)
        if scaled(low) == scaled(high):
            break
    best = min((scaled(low), scaled(high)), key=score)
    if score(best)[0]:  # rounding is too coarse for a common factor: change one width, then two
        best = min((best, *single(scaled(low)), *single(scaled(high))), key=score)
    if score(best)[0]:
        moved = [
            start
            for index, (width, step) in enumerate(multiples.items())
            for count in range(-REACH, REACH + 1)
            if (start := _replaced(best, index, best[index] + count * step))[index] >= least(width, step) * step
        ]
        best = min((best, *(near for start in moved for near in single(start))), key=score)
    return best


def _bracket(cost: Callable[[float], int], goal: int) -> tuple[float, float]:
    """Two factors with the goal between their costs, if they exist."""
    low = high = 1.0
    while cost(low) > goal and low > 1 / WIDEST:
        low /= 2
    while cost(high) <= goal and high < WIDEST and cost(2 * high) > cost(high):
        high *= 2
    return low, high


def _replaced(widths: tuple[int, ...], index: int, width: int) -> tuple[int, ...]:
    return (*widths[:index], width, *widths[index + 1 :])


def _around(
    widths: tuple[int, ...], index: int, step: int, cost: Callable[[tuple[int, ...]], int], goal: int
) -> list[tuple[int, ...]]:
    """Change the width at `index`, by less than half, to the two values whose costs enclose the goal."""
    current = widths[index] // step
    low, high = max(1, math.ceil(current / 1.5)), min(math.floor(1.5 * current), WIDEST // step)
    while high - low > 1:
        middle = (low + high) // 2
        if cost(_replaced(widths, index, middle * step)) <= goal:
            low = middle
        else:
            high = middle
    return [_replaced(widths, index, count * step) for count in (low, high)]
