"""What a study shows, in three to six sentences: each true of the numbers, none beyond its interval."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence

from vae_lab.report.tables import change, figure, interval, probability, ranked, sentence_list
from vae_lab.results.study import Study
from vae_lab.statistics import LEVEL, MOST_CELLS, RECORD, Comparison, Effect, Pair, holm

SECONDS, PARAMETERS, FLOPS = "timing.train_seconds", "model.parameters", "model.flops_per_image"
SIDES = ("encoder", "decoder")
MOST = 6


def findings(study: Study, statistics: Mapping[str, Comparison]) -> list[str]:
    """At most six sentences, the most important first."""
    if RECORD not in statistics:
        return ["No run has a test total: there is nothing to compare."]
    order = [
        *_best(study, statistics),
        *_one_seed(study),
        *_cost(study, statistics),
        *(sentence for side in SIDES for sentence in _halves(side, study, statistics)),
        *_order_elsewhere(study, statistics),
        *_each_at_its_best(study, statistics),
        *_interaction(study, statistics),
        *_other_factors(study, statistics),
        *_gap(study, statistics),
    ]
    return order[:MOST]


def add_seeds(study: Study, seeds: Sequence[int] = range(5)) -> str:
    """The command that trains the same cells with more seeds, into the same folder."""
    values: dict[str, list[str]] = {"encoder": [], "decoder": []}
    for record in study.records:
        given = [("encoder", record.result.encoder), ("decoder", record.result.decoder)]
        for word in record.result.overrides:
            key, _, value = word.partition("=")
            if key not in ("encoder", "decoder", "seed", "name", "experiment"):
                given.append((key, value))
        for key, value in given:
            if value not in values.setdefault(key, []):
                values[key].append(value)
    words = [f"{key}={','.join(choices)}" for key, choices in values.items()]
    words += [f"seed={','.join(map(str, seeds))}", f"name={study.sweeps[0]}"]
    return f"python train.py -m {' '.join(map(shlex.quote, words))}"


# --- Sentences ---------------------------------------------------------------------------------------------


def _best(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    quality = statistics[RECORD]
    order = ranked(RECORD, quality)
    if not order:
        return
    if _conditions_differ(study):
        yield "The cells were not all trained and tested under the same conditions, so none is called the best."
        return
    first, *others = order
    said = f"{study.label(first)} has the lowest test total, {figure(RECORD, quality.cells[first])}"
    seeds = len(study.seeds)
    if not others:
        yield f"{study.label(first)} has a test total of {figure(RECORD, quality.cells[first])}{_over(seeds)}."
        return
    pairs = {other: quality.pair(other, first) for other in others}
    if seeds < 2:
        runner_up = f"{study.label(others[0])} has {figure(RECORD, quality.cells[others[0]])}"
        yield f"{said}, in a single seed; {runner_up}. No difference can be called real with one seed."
        return
    known = [(other, pair) for other, pair in pairs.items() if pair is not None and pair.p_adjusted is not None]
    open_ = [(other, pair) for other, pair in known if not pair.different]
    untested = [other for other, pair in pairs.items() if pair is None or pair.p_adjusted is None]
    said += _over(seeds)
    if untested and len(study.cells) > MOST_CELLS:
        told = f"with more than {MOST_CELLS} cells, pairs are taken against {study.label(study.cells[0])} only"
        yield f"{said}, but that it differs from every other cell was not tested: {told}."
    elif untested:
        yield f"{said}, but too few runs finished to compare it with {_labels(study, untested)}."
    elif open_:
        other, pair = open_[0]
        yield (
            f"{said}, but it cannot be told apart from {_labels(study, [other for other, _ in open_])}: "
            f"{study.label(other)} is {_difference(pair)}."
        )
    else:
        other, pair = known[0]
        yield (
            f"{said}, and differs from every other cell; the nearest, {study.label(other)}, is {_difference(pair)}, "
            f"adjusted p {_is(pair.p_adjusted)}."
        )


def _one_seed(study: Study) -> Iterator[str]:
    if len(study.seeds) == 1:
        why = "learn which differences are real" if len(study.cells) > 1 else "learn how much chance there is in it"
        yield f"To {why}, add seeds: `{add_seeds(study)}`"


def _cost(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    if SECONDS not in statistics:
        return
    if len(study.hardware) > 1:
        yield f"The runs were timed on {len(study.hardware)} kinds of hardware, so their times are not ranked."
        return
    if _conditions_differ(study):
        yield "For the same reason their training times are not ranked."
        return
    clock, quality = statistics[SECONDS], statistics[RECORD]
    order = ranked(SECONDS, clock)
    if not order:
        return
    if len(order) == 1 or len(study.cells) == 1:
        size = figure(PARAMETERS, statistics[PARAMETERS].cells[order[0]]) if PARAMETERS in statistics else "unknown"
        yield (
            f"{study.label(order[0])} trains in {figure(SECONDS, clock.cells[order[0]])} s and has {size} parameters."
        )
        return
    fastest = order[0]
    lead = next(iter(ranked(RECORD, quality)), fastest)
    if lead == fastest:
        said = f"{study.label(lead)} also took the least time to train"
        seconds = f"{figure(SECONDS, clock.cells[lead])} s"
        rest = f"the next, {study.label(order[1])}, took {figure(SECONDS, clock.cells[order[1]])} s"
        pairs = {other: clock.pair(other, lead) for other in order[1:]}
        unsure = [other for other, pair in pairs.items() if pair is None or not pair.different]
        if len(study.seeds) == 1:
            yield f"{said} in this one seed, {seconds}; {rest}."
        elif unsure:
            yield f"{said} on average, {seconds}, but it is not shown to be faster than {_labels(study, unsure)}."
        else:
            yield f"{said}, {seconds}; {rest}."
        return
    if lead not in order:
        return
    pair = clock.pair(lead, fastest)
    extra = f"{change(pair.difference, pair, SECONDS)} s" if pair is not None else "an unknown difference"
    within = f", 95 % interval {interval(pair, SECONDS)}" if pair is not None and pair.low is not None else ""
    yield (
        f"{study.label(lead)} trains in {figure(SECONDS, clock.cells[lead])} s; the fastest on average is "
        f"{study.label(fastest)} with {figure(SECONDS, clock.cells[fastest])} s ({extra}{within})."
    )


def _halves(side: str, study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """Does the more complex half pay?"""
    effects = [effect for effect in statistics[RECORD].effects if effect.factor == side and effect.effect is not None]
    for effect in sorted(effects, key=lambda one: one.effect or 0.0)[:2]:
        yield f"{_opening(side, effect)}{_costs(effect, statistics)}: {_verdict(effect, statistics)}."


def _opening(factor: str, effect: Effect) -> str:
    step = f"{factor} {effect.from_} to {effect.to}"
    if factor in SIDES:
        step = f"the {effect.from_} to the {effect.to} {factor}"
    said = f"Going from {step} changes the test total by {change(effect.effect, effect)}"
    if effect.low is None:
        return f"{said} in this one seed"
    return f"{said} in every seed" if effect.low == effect.high else f"{said} (95 % interval {interval(effect)})"


def _costs(effect: Effect, statistics: Mapping[str, Comparison]) -> str:
    told = []
    for name, unit in ((PARAMETERS, "parameters"), (FLOPS, "MFLOPs an image"), (SECONDS, "s of training")):
        other = _same(effect, statistics.get(name))
        if other is None or other.effect is None:
            continue
        within = f" ({interval(other, name)})" if other.low is not None and other.low != other.high else ""
        told.append(f"{change(other.effect, other, name)} {unit}{within}")
    return f", at {sentence_list(told)}" if told else ""


def _verdict(effect: Effect, statistics: Mapping[str, Comparison]) -> str:
    low, high = effect.low, effect.high
    if low is None or high is None:
        return "with one seed that is no more than a hint"
    if low == high == 0:
        return "the two give the same results"
    dearer = _dearer(effect, statistics)
    if high < 0:
        return "better, and that is what the cost buys" if dearer else "better, at no more cost"
    if low > 0:
        return "the more complex one does not pay" if dearer else "worse; it is also the simpler one"
    gain = f"{-low:.5f}" if low < 0 else "any"
    if dearer:
        return f"no gain is shown that would pay for it, and one of more than {gain} would be outside the interval"
    return "neither better nor worse is shown"


def _dearer(effect: Effect, statistics: Mapping[str, Comparison]) -> bool:
    for name in (FLOPS, PARAMETERS):
        other = _same(effect, statistics.get(name))
        if other is not None and other.effect:
            return other.effect > 0
    return False


def _interaction(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    found = [one for one in statistics[RECORD].effects if one.factor == "encoder:decoder" and one.low is not None]
    if len(found) != 1:
        return
    effect = found[0]
    assert effect.low is not None
    assert effect.high is not None
    told = f"interaction {change(effect.effect, effect)}, 95 % interval {interval(effect)}"
    if effect.low > 0 or effect.high < 0:
        more = "more" if effect.low > 0 else "less"
        yield f"The halves do not simply add up: both together change the test total by {more} than their sum ({told})."
    else:
        yield f"That the effect of one half depends on the other is not shown ({told})."


def _order_elsewhere(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """Whether the order of the networks is the same at every level of what else was swept."""
    quality = statistics[RECORD]
    for place, (factor, levels) in enumerate(study.factors.items()):
        if factor in SIDES:
            continue
        orders: dict[str, list[str]] = {}
        for level in levels:
            cells = [cell for cell in study.cells if study.levels[cell][place] == level]
            present = {cell: found for cell in cells if (found := quality.cells[cell].mean) is not None}
            orders[level] = [_others(study, cell, place) for cell in sorted(present, key=lambda cell: present[cell])]
        if min(map(len, orders.values())) < 2 or len({frozenset(order) for order in orders.values()}) > 1:
            continue
        where = f"at {factor} {sentence_list(levels)}"
        if len({tuple(order) for order in orders.values()}) == 1:
            same = ", ".join(orders[levels[0]])
            yield f"The order of the cells by mean test total survives: it is the same {where} ({same})."
            continue
        told = "; ".join(f"{level}: {', '.join(order)}" for level, order in orders.items())
        sure = _reversed(study, quality, place, levels)
        if sure:
            yield (
                f"The order of the cells by test total does not survive {where} ({told}): {sure} swap places, each "
                "time by more than chance."
            )
        else:
            yield (
                f"The order of the cells by mean test total is not the same {where} ({told}), but no pair is shown to "
                "swap places."
            )


def _others(study: Study, cell: str, place: int) -> str:
    return "-".join(level for index, level in enumerate(study.levels[cell]) if index != place) or cell


def _reversed(study: Study, quality: Comparison, place: int, levels: Sequence[str]) -> str:
    """The first two networks of which one is shown to be better at one level and worse at another.

    The family of Holm's correction is the pairs within a level: those that the question is about.
    """
    at = {level: [cell for cell in study.cells if study.levels[cell][place] == level] for level in levels}
    couples = [couple for cells in at.values() for couple in itertools.combinations(cells, 2)]
    found = [quality.pair(*couple) for couple in couples]
    adjusted = holm([None if pair is None else pair.p for pair in found])
    winners: dict[frozenset[str], set[str]] = {}
    for pair, p in zip(found, adjusted, strict=True):
        if pair is not None and pair.difference and p is not None and p < 1 - LEVEL:
            names = [_others(study, cell, place) for cell in (pair.a, pair.b)]
            winners.setdefault(frozenset(names), set()).add(names[0] if pair.difference < 0 else names[1])
    swapped = next((names for names, best in winners.items() if len(best) == 2), None)
    return sentence_list(sorted(swapped)) if swapped else ""


def _each_at_its_best(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """The networks at the level of a swept number where each has its lowest validation total."""
    validation, quality = statistics.get("val.total"), statistics[RECORD]
    other = [(place, factor) for place, factor in enumerate(study.factors) if factor not in SIDES]
    if validation is None or len(other) != 1 or len(study.factors) < 2:
        return
    place, factor = other[0]
    chosen: dict[str, str] = {}
    for cell in ranked("val.total", validation):
        chosen.setdefault(_others(study, cell, place), cell)
    if len(chosen) < 2 or any(quality.cells[cell].mean is None for cell in chosen.values()):
        return
    order = [cell for cell in ranked(RECORD, quality) if cell in chosen.values()]
    told = "; ".join(
        f"{_others(study, cell, place)} at {study.levels[cell][place]}: {figure(RECORD, quality.cells[cell])}"
        for cell in order
    )
    yield f"Each at the {factor} of its lowest validation total, the test totals are {told}."


def _other_factors(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    for factor in study.factors:
        if factor in SIDES:
            continue
        effects = [one for one in statistics[RECORD].effects if one.factor == factor and one.effect is not None]
        for effect in sorted(effects, key=lambda one: one.effect or 0.0)[:1]:
            yield f"{_opening(factor, effect)}, the mean over all networks."


def _gap(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    train = statistics.get("train.total")
    shares = [
        found.mean / mean - 1
        for cell in study.cells
        if (found := statistics[RECORD].cells[cell]).mean is not None
        and train is not None
        and (mean := train.cells[cell].mean)
    ]
    if shares:
        low, high = (f"{100 * share:+.1f} %" for share in (min(shares), max(shares)))
        by = low if low == high else f"{low} to {high}"
        yield f"The test total differs from the training total of the last epoch by {by}.".replace("-", "−")


def _same(effect: Effect, comparison: Comparison | None) -> Effect | None:
    key = (effect.factor, effect.from_, effect.to)
    found = comparison.effects if comparison is not None else ()
    return next((other for other in found if (other.factor, other.from_, other.to) == key), None)


def _conditions_differ(study: Study) -> bool:
    return len({tuple(condition.items()) for condition in study.conditions.values()}) > 1


def _difference(pair: Pair) -> str:
    if pair.difference == 0 and pair.low == pair.high:
        return "the same in every seed"
    more = "higher" if (pair.difference or 0) >= 0 else "lower"
    size = change(pair.difference, pair).lstrip("+−")
    return f"{size} {more}, 95 % interval {interval(pair)}"


def _is(p: float | None) -> str:
    told = probability(p)
    return told if told.startswith("<") else f"= {told}"


def _labels(study: Study, cells: Sequence[str]) -> str:
    if len(cells) > 4:
        return f"{len(cells)} others"
    return sentence_list([study.label(cell) for cell in cells], "or")


def _over(seeds: int) -> str:
    return f" over {seeds} seeds" if seeds > 1 else ""
