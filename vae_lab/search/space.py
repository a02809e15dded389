"""The search space, parsed from Hydra's words for sweeps (choice, interval, range, tag)."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from vae_lab.config import NOT_IDENTIFYING, ConfigError, Problem
from vae_lab.results.trials import Choice, Number, Space, Value, bare

DIGITS = 3
"""Significant digits of a value from an interval, so that it fits in the name of its run."""
WAYS = "latent.dim=16,64,256, objective.beta='tag(log,interval(0.001,0.1))' or latent.dim='range(16,257,16)'"


def parse(words: Sequence[str], config: DictConfig, loader: ConfigLoader | None = None) -> tuple[Space, list[str]]:
    """The space that these overrides span, and the overrides of every trial. The last override of a key counts.

    Args:
        words: overrides, as typed.
        config: the configuration that they override; a whole number in it is searched in whole numbers.
        loader: resolves a `glob`.

    Raises:
        ConfigError: with the keys that cannot be searched.
        HydraException: if a word is not an override.
    """
    parsed: dict[str, Override] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(words)):
        key = override.get_key_element()
        parsed.pop(key, None)
        parsed[key] = override
    space: dict[str, Choice | Number] = {}
    problems: list[Problem] = []
    for key, override in parsed.items():
        if not override.is_sweep_override():
            continue
        try:
            space[key] = _parameter(key, override, config)
        except ConfigError as error:
            problems += error.problems
    if not space and not problems:
        problems = [Problem("hydra.sweeper.params", f"there is nothing to search: give a key a space, such as {WAYS}")]
    if problems:
        raise ConfigError(*problems)
    fixed = [f"{key}={one.get_value_element_as_str()}" for key, one in parsed.items() if key not in space]
    return space, fixed


def _parameter(key: str, override: Override, config: DictConfig) -> Choice | Number:
    name = bare(key)
    if name in NOT_IDENTIFYING or name.partition(".")[0] in NOT_IDENTIFYING:
        reason = "luck, not a choice to be made" if name == "seed" else "no part of what a run computes"
        raise ConfigError(Problem(name, f"cannot be searched: it is {reason}; give it one value"))
    sweep = override.value()
    tags = {*getattr(sweep, "tags", ())}
    if tags - {"log"}:
        raise ConfigError(Problem(name, f"has the tag {min(tags - {'log'})!r}; known: log"))
    if isinstance(sweep, IntervalSweep):
        return _interval(name, sweep, is_log=bool(tags), is_count=_is_count(name, config))
    if isinstance(sweep, RangeSweep):
        return _range(name, sweep, is_log=bool(tags))
    if tags:
        raise ConfigError(Problem(name, "has the tag 'log', which is for an interval or a range of whole numbers"))
    choices = [*dict.fromkeys(override.sweep_string_iterator())]
    if not choices:
        raise ConfigError(Problem(name, f"the space {override.input_line} holds nothing"))
    return Choice(choices=choices)


def _is_count(name: str, config: DictConfig) -> bool:
    return type(OmegaConf.select(config, name, default=None, throw_on_missing=False)) is int


def _interval(name: str, sweep: IntervalSweep, *, is_log: bool, is_count: bool) -> Number:
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    text = f"interval({low:g},{high:g})"
    if not low < high or not math.isfinite(low) or not math.isfinite(high):
        raise ConfigError(Problem(name, f"the lower end of an interval must lie below the upper, but is {text}"))
    _check_log(name, text, low, is_log=is_log)
    whole = (type(low) is int and type(high) is int) or (is_count and low == int(low) and high == int(high))
    return Number(low=low, high=high, whole=whole, log=is_log)


def _range(name: str, sweep: RangeSweep, *, is_log: bool) -> Choice | Number:
    # The values 0.1, 0.30000000000000004, … with the digits that were typed.
    exponents = (Decimal(str(number)).as_tuple().exponent for number in (sweep.start, sweep.step))
    digits = max(0, *(-exponent for exponent in exponents if isinstance(exponent, int)))
    values = [number if isinstance(number, int) else round(number, digits) for number in sweep.range()]
    text = f"range({sweep.start},{sweep.stop},{sweep.step})"
    if not values:
        raise ConfigError(Problem(name, f"the space {text} holds nothing"))
    low, high, step = min(values), max(values), abs(sweep.step)
    _check_log(name, text, low, is_log=is_log)
    whole = all(isinstance(number, int) for number in values)
    if is_log and (step != 1 or not whole):
        problem = f"must be a range of whole numbers one apart to be searched on a logarithmic scale, but is {text}"
        raise ConfigError(Problem(name, problem))
    return Number(low=low, high=high, whole=whole, step=None if step == 1 and whole else step, log=is_log)


def _check_log(name: str, text: str, low: float, *, is_log: bool) -> None:
    if is_log and low <= 0:
        problem = f"must be greater than 0 to be searched on a logarithmic scale, but is {text}"
        raise ConfigError(Problem(name, problem))


def tidy(value: Value, parameter: Choice | Number) -> Value:
    """A sampler's value, rounded to a few digits if it is from an interval, and kept inside it."""
    if isinstance(parameter, Choice) or isinstance(value, str):
        return value
    if parameter.whole:
        return int(value)
    if parameter.step is not None:
        return float(f"{value:.12g}")
    return min(max(float(f"{value:.{DIGITS}g}"), parameter.low), parameter.high)


def _values(parameter: Choice | Number) -> Sequence[Value] | None:
    """All values of a key in order; None if they are not counted: an interval of real numbers."""
    if isinstance(parameter, Choice):
        return parameter.choices
    if parameter.whole:
        return range(int(parameter.low), int(parameter.high) + 1, int(parameter.step or 1))
    if parameter.step is None:
        return None
    steps = range(round((parameter.high - parameter.low) / parameter.step) + 1)
    return [tidy(parameter.low + parameter.step * step, parameter) for step in steps]


def size(space: Space) -> int | None:
    """The number of points of a space; None if it is not finite."""
    counts = [None if (values := _values(parameter)) is None else len(values) for parameter in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def point(space: Space, index: int) -> dict[str, Value]:
    """The point of a finite space with this number, from 0."""
    found: dict[str, Value] = {}
    for key, parameter in space.items():
        values = _values(parameter)
        assert values is not None
        index, own = divmod(index, len(values))
        found[key] = values[own]
    return found


def overrides(values: Mapping[str, Value]) -> list[str]:
    """Values as overrides for a command line."""
    return [f"{key}={value}" for key, value in values.items()]


def ends(space: Space) -> Iterator[dict[str, Value]]:
    """The corners of a space: all keys at their first ends, all at their last, and each end of one key alone."""
    lowest = {key: parameter.ends()[0] for key, parameter in space.items()}
    highest = {key: parameter.ends()[-1] for key, parameter in space.items()}
    alone = [lowest | {key: end} for key, parameter in space.items() for end in parameter.ends()]
    yield from _once([lowest, *alone, highest])


def _once(found: Iterable[dict[str, Value]]) -> Iterator[dict[str, Value]]:
    seen = set()
    for one in found:
        words = tuple(overrides(one))
        if words not in seen:
            seen.add(words)
            yield one
