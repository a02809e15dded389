"""The findings of a study, in three to six sentences. No sentence claims more than its interval supports."""

import itertools
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from vae_lab.config.terminal import train_command
from vae_lab.report.tables import (
    SAMPLERS,
    better_than,
    change,
    decimals,
    deviation,
    figure,
    interval,
    probability,
    ranked,
    sampled,
    sentence_list,
)
from vae_lab.results import read_config_folders
from vae_lab.results.figures import Figure
from vae_lab.study.contrasts import FEWEST_SEEDS
from vae_lab.study.gather import SIDES, TOTAL, VARY, Study, is_number
from vae_lab.study.published import beside, counted
from vae_lab.study.rate_distortion import PERCENT, rate_distortion
from vae_lab.study.statistics import MOST_CELLS, Cell, Comparison, Effect, Pair

SPEAKS_FOR = {"reconstructions": "test.mse", "samples": "test.fid_samples", "codes": "test.probe_accuracy"}
"""What a step may change beside the metric of record → the figure that speaks for it."""
SECONDS, PARAMETERS, FLOPS = "timing.train_seconds", "model.parameters", "model.flops_per_image"
MOST, MOST_NAMED = 6, 4
"""Largest number of sentences, and of cells named in one sentence."""
EQUAL_COST = 0.02
"""Relative difference in parameters or FLOPs up to which two models count as equally expensive, as in `match`."""


def findings(study: Study, statistics: Mapping[str, Comparison]) -> list[str]:
    """At most six sentences, the most important first."""
    if TOTAL not in statistics:
        return ["No run has a test total: there is nothing to compare."]
    order = [
        *_best(study, statistics),
        *_failures(study),
        *_published(study, statistics),
        *_curves(study),
        *_one_seed(study, statistics),
        *_chance(study, statistics),
        *_cost(study, statistics),
        *(sentence for side in SIDES for sentence in _halves(study, side, statistics)),
        *_interaction(study, statistics),
        *_each_at_its_best(study, statistics),
        *_other_factors(study, statistics),
        *_edge(study, statistics),
        *_samplers(study),
        *(_gap(study, statistics) if study.record == TOTAL else ()),
    ]
    return order[:MOST]


def add_seeds(study: Study, seeds: Sequence[int] = range(5)) -> str | None:
    """The command that trains the same cells with more seeds in the same folder; None if no single command can."""
    first = {cell: next(record for record in study.records if record.cell == cell) for cell in study.cells}
    typed = {cell: _typed(record.result.overrides) for cell, record in first.items()}
    complete = math.prod(map(len, study.factors.values())) == len(study.cells) == len(set(study.levels.values()))
    if not complete or len(study.sweeps) > 1:
        return None
    values: dict[str, dict[str, None]] = {}
    for cell, record in first.items():
        levels = dict(zip(study.factors, study.levels[cell], strict=True))
        own = {"encoder": record.result.encoder, "decoder": record.result.decoder} | levels
        own |= {word: value for word, value in typed[cell].items() if word.lstrip("+~") not in own}
        # Keep the sign as typed: '+key' adds a key that the file lacks.
        signs = {word.lstrip("+~"): word for other in typed.values() for word in other}
        for key, value in own.items():
            values.setdefault(signs.get(key, key), {})[value] = None
    if any("default" in choices for choices in values.values()):
        return None
    folders = read_config_folders(study.records[0].folder)
    words = [word for folder in folders for word in ("--config-dir", folder)]
    words += [f"{key}={','.join(choices)}" if choices != {"": None} else key for key, choices in values.items()]
    words += [f"seed={','.join(map(str, seeds))}", f"name={study.sweeps[0]}"]
    return f"{train_command()} -m {' '.join(map(shlex.quote, words))}"


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    """Overridden keys, with their sign, and their values; the last value counts if a key is given twice."""
    typed: dict[str, str] = {}
    for override in overrides:
        word, _, value = override.partition("=")
        if word.lstrip("+~") in ("encoder", "decoder", "seed", "name", "experiment"):
            continue
        typed = {key: old for key, old in typed.items() if key.lstrip("+~") != word.lstrip("+~")} | {word: value}
    return typed


# --- Sentences ---------------------------------------------------------------------------------------------


def _published(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """The verdicts about the first published figure of which any is decided."""
    rows = beside(study, statistics)
    for metric, verdicts in itertools.islice(counted(rows), 1):
        parts = []
        for verdict, cells in verdicts.items():
            named = "all cells" if {*cells} == {*study.cells} else sentence_list([study.label(cell) for cell in cells])
            parts.append(f"{verdict} for {named}")
        what = f"the published {study.figure(metric).heading} is {'; '.join(parts)}"
        yield f"Beside {sentence_list(list(dict.fromkeys(row.source for row in rows)))}: {what}."


def _best(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    row = study.figure(study.record)
    quality = statistics[row.name]
    order = ranked(row, quality)
    if not order:
        return
    if VARY in study.factors:
        yield from _spread(study, row, quality)
        return
    if not study.comparable(row.name):
        yield "The cells' test totals were not measured under the same conditions, so none is called the best."
        return
    if row.name != TOTAL:
        yield f"Totals are different quantities here, so the cells are compared by {row.label}: {row.meaning}."
    first, how = _chosen(study, statistics, order)
    others = [cell for cell in order if cell != first]
    own = quality.cells[first]
    if not others:
        yield f"{study.label(first)} has a {row.heading} of {figure(row, own)}{_over(own.n)}."
        return
    top = f"{'highest' if row.better == 'higher' else 'lowest'} {row.heading}"
    if max(cell.n for cell in quality.cells.values()) < 2:
        first, *others = order
        runner_up = f"{study.label(others[0])} has {_level(row, quality, others[0])}"
        lead = f"{study.label(first)} has the {top}, {_level(row, quality, first)}, in a single seed"
        yield f"{lead}; {runner_up}. No difference can be called real with one seed."
        return
    lead = f"{study.label(first)}{how} has the {top}, {figure(row, own)}{_over(own.n)}"
    if first != order[0]:
        best = f"the {top} is that of {study.label(order[0])}, {figure(row, quality.cells[order[0]])}"
        lead = f"{study.label(first)}{how} has a {row.heading} of {figure(row, own)}{_over(own.n)}; {best}"
    pairs = {other: quality.pair(first, other) for other in others}
    few = [other for other, pair in pairs.items() if pair is None or pair.n < FEWEST_SEEDS]
    untested = [other for other, pair in pairs.items() if other not in few and pair and pair.low is None]
    constant = [other for other, pair in pairs.items() if pair and pair.low is not None and pair.low == pair.high]
    better = [other for other in others if better_than(row, quality, other, first)]
    open_ = [
        other
        for other, pair in pairs.items()
        if pair and pair.low != pair.high and not pair.different and other not in few
    ]
    if few and len(study.cells) > MOST_CELLS and first != study.cells[0]:
        detail = f"with more than {MOST_CELLS} cells, pairs are taken against {study.label(study.cells[0])} only"
        yield f"{lead}, but that it differs from every other cell was not tested: {detail}."
    elif few:
        yield f"{lead}, but there are too few seeds to compare it with {_labels(study, few)}."
    elif untested:
        yield f"{lead}, but whether it differs from {_labels(study, untested)} is not tested."
    elif better:
        detail = _detail(study, row, quality, better[0], first)
        yield f"{lead}; {study.label(better[0])} is shown to be better: {detail}."
    elif open_:
        detail = _detail(study, row, quality, open_[0], first)
        yield f"{lead}, but it cannot be told apart from {_labels(study, open_)}: {detail}."
    elif constant:
        yield f"{lead}; {_versus(study, row, quality, constant[0], first)}, which leaves nothing to test."
    else:
        those = "every other cell" if len(order) == len(study.cells) else "every other cell that finished"
        yield f"{lead}, and differs from {those}: {_detail(study, row, quality, others[0], first)}."


def _chosen(study: Study, statistics: Mapping[str, Comparison], order: Sequence[str]) -> tuple[str, str]:
    """The cell that validation chooses, with that clause; the best by the test figure if validation has no such figure.

    Args:
        study: the runs.
        statistics: their comparisons.
        order: the cells that have the test figure, best first.
    """
    name = f"val.{study.record.partition('.')[2]}"
    if name not in statistics or not study.comparable(name):
        return order[0], ""
    chosen = ranked(study.figure(study.record)._replace(name=name), statistics[name])
    return next(((cell, ", chosen by validation,") for cell in chosen if cell in order), (order[0], ""))


def _spread(study: Study, row: Figure, quality: Comparison) -> Iterator[str]:
    """What the seeds do to the metric of record, by what they change."""
    spread = {name: cell for name, cell in quality.cells.items() if cell.sd}
    if spread:
        parts = [f"{deviation(row, cell)} for {study.label(name)}" for name, cell in spread.items()]
        yield f"The seeds' standard deviation of the {row.heading} is {sentence_list(parts)}."


def _detail(study: Study, row: Figure, quality: Comparison, cell: str, other: str) -> str:
    return f"{_versus(study, row, quality, cell, other)}{_adjusted(quality.pair(cell, other))}"


def _chance(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """What chance does to the metric of record, where it limits what can be shown."""
    row, quality = study.figure(study.record), statistics[study.record]
    noise = quality.noise
    if noise is None:
        return
    if len(study.seeds) < FEWEST_SEEDS:
        yield f"With {len(study.seeds)} seeds nothing is tested: at least {FEWEST_SEEDS} are needed to know the noise."
        return
    cells = list(quality.cells)
    if noise.wide is not None:
        wide = study.label(cells[noise.wide.cell])
        varies = f"{wide} varies {_times(noise.wide.ratio)} as much from seed to seed as the others"
        if noise.wide.outlier is None:
            whose = (
                "differences from it count only if they are"
                if noise.wide.is_unmistakable
                else "a difference counts only if it is"
            )
            yield f"{varies}, so {whose} also found from the spread of its own cells."
        else:
            seed = study.values(row.name).index[noise.wide.outlier]
            iqm = quality.cells[cells[noise.wide.cell]].iqm
            middle = "" if iqm is None else figure(row, Cell(0, iqm, None, None, None))
            robust = f" (its interquartile mean, which that seed does not move, is {middle})" if middle else ""
            yield f"{varies}, and its seed {seed} lies far from its other seeds: nothing about it is tested{robust}."
    tested = [pair for pair in quality.pairs if pair.p_adjusted is not None]
    seeds = {cell.n for cell in quality.cells.values()}
    if noise.wide is None and len(seeds) == 1 and tested and not any(pair.different for pair in tested):
        largest = max(tested, key=lambda pair: abs(pair.difference or 0.0))
        sentence = (
            f"With this noise, {len(study.seeds)} seeds find a difference of "
            f"{change(noise.detectable, largest, row).lstrip('+')} in 80 % of studies"
        )
        needed = noise.seeds_to_find(largest.difference or 0.0)
        size = change(abs(largest.difference or 0.0), largest, row).lstrip("+")
        more = f"about {max(needed, len(study.seeds) + 1)} seeds" if needed else "more than 100 seeds"
        yield f"{sentence}; for the largest one seen, {size}, that takes {more}."


def _times(ratio: float) -> str:
    return f"{ratio:.{decimals(ratio) if ratio < 10 else 0}f} times" if ratio < 1000 else "more than 1,000 times"


def _failures(study: Study) -> Iterator[str]:
    """Failed runs are an outcome, which means over the other seeds leave out."""
    failed = Counter(record.cell for record in study.records if not record.result.finished)
    failed.update(record.cell for record in study.compared if record.result.test.total is None)
    if failed:
        counts = [f"{count} of {study.label(cell)}" for cell, count in failed.most_common(MOST_NAMED)]
        more = " and others" if len(failed) > MOST_NAMED else ""
        yield (
            f"Runs failed, {sentence_list(counts)}{more}: means are over the others, which flatters cells that fail."
        )


def _edge(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """Whether the best level of a swept number is the largest or the smallest that was tried."""
    if not study.comparable(study.record):
        return
    order = ranked(study.figure(study.record), statistics[study.record])
    for axis, (factor, levels) in enumerate(study.factors.items()):
        if not order or len(levels) < 3 or not all(map(is_number, levels)):
            continue
        best = study.levels[_chosen(study, statistics, order)[0]][axis]
        values = sorted(map(float, levels))
        if float(best) in (values[0], values[-1]):
            way = "largest" if float(best) == values[-1] else "smallest"
            yield f"The {factor} of that cell, {best}, is the {way} that was tried: the best may lie beyond."


def _curves(study: Study) -> Iterator[str]:
    """The architecture whose rate–distortion curve lies lowest, beside the first one's."""
    found = rate_distortion(study)
    known = [one for one in found.differences if one.distortion.difference is not None] if found else []
    if found is None or not known:
        return
    pair, rate = min(((one.distortion, one.rate) for one in known), key=lambda both: both[0].difference or 0.0)
    start = f"Over β, at equal rate the distortion of {pair.a} minus that of {pair.b} is"
    sentence = f"{start} {change(pair.difference, pair, found.difference)} {found.difference.unit}"
    sentence += "" if pair.low is None else f" (95 % interval {interval(pair, found.difference)}{_adjusted(pair)})"
    if rate.difference is not None:
        within = "" if rate.low is None else f", {interval(rate, PERCENT)}"
        sentence += f", and its rate at equal distortion {change(rate.difference, rate, PERCENT)} %{within}"
    yield f"{sentence}{'' if pair.different else '; a difference is not shown'}."


def _adjusted(pair: Pair | Effect | None) -> str:
    if pair is None or pair.p_adjusted is None:
        return ""
    p = probability(pair.p_adjusted)
    return f", adjusted p {p if p.startswith('<') else f'= {p}'}"


def _one_seed(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    quality = statistics[study.record]
    if max(cell.n for cell in quality.cells.values()) < 2:
        why = "learn which differences are real" if len(study.cells) > 1 else "learn how much chance there is in it"
        command = add_seeds(study)
        yield f"To {why}, add seeds: " + (f"`{command}`" if command else "train each cell with seed=0,1,2,3,4.")


def _cost(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    if SECONDS not in statistics:
        return
    if len(study.hardware) > 1:
        yield f"The runs were timed on {len(study.hardware)} kinds of hardware, so their times are not ranked."
        return
    if VARY in study.factors:
        return
    if not study.comparable(SECONDS):
        yield "The cells were not trained under the same conditions, so their times are not ranked."
        return
    clock, quality = statistics[SECONDS], statistics[study.record]
    order = ranked(SECONDS, clock)
    if not order:
        return
    fastest = order[0]
    if len(order) == 1:
        size = figure(PARAMETERS, statistics[PARAMETERS].cells[fastest]) if PARAMETERS in statistics else "unknown"
        yield f"{study.label(fastest)} trains in {figure(SECONDS, clock.cells[fastest])} s and has {size} parameters."
        return
    by_quality = ranked(study.figure(study.record), quality)
    lead = _chosen(study, statistics, by_quality)[0] if by_quality else fastest
    if lead not in order or not study.comparable(study.record):
        slowest = order[-1]
        yield (
            f"Training takes from {figure(SECONDS, clock.cells[fastest])} s ({study.label(fastest)}) to "
            f"{figure(SECONDS, clock.cells[slowest])} s ({study.label(slowest)}) on average."
        )
        return
    seconds = f"{figure(SECONDS, clock.cells[lead])} s"
    if clock.cells[lead].mean == clock.cells[fastest].mean:
        unsure = [other for other in order if other != lead and not better_than(SECONDS, clock, lead, other)]
        runner_up = next(other for other in order if other != lead)
        rest = f"the next, {study.label(runner_up)}, took {figure(SECONDS, clock.cells[runner_up])} s"
        sentence = f"{study.label(lead)} also took the least time to train"
        if max(cell.n for cell in clock.cells.values()) < 2:
            yield f"{sentence} in this one seed, {seconds}; {rest}."
        elif unsure:
            yield f"{sentence} on average, {seconds}, but it is not shown to be faster than {_labels(study, unsure)}."
        else:
            yield f"{sentence}, {seconds}; {rest}."
        return
    pair = clock.pair(fastest, lead)
    extra = f"{change(pair.difference, pair, SECONDS)} s" if pair is not None else "how much is not known"
    within = f", 95 % interval {interval(pair, SECONDS)}" if pair is not None and pair.low is not None else ""
    yield (
        f"{study.label(lead)} trains in {seconds}; the fastest on average is {study.label(fastest)} with "
        f"{figure(SECONDS, clock.cells[fastest])} s ({extra}{within})."
    )


def _halves(study: Study, side: str, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """What another encoder or decoder gains or loses, in every family of figures, and what it costs."""
    row = study.figure(study.record)
    effects = [effect for effect in statistics[row.name].effects if effect.factor == side and effect.effect is not None]
    sign = -1 if row.better == "higher" else 1
    for effect in sorted(effects, key=lambda one: sign * (one.effect or 0.0))[:2]:
        verdict = _verdict(row, effect, statistics)
        trade = _trade_offs(study, effect, statistics)
        yield f"{_opening(row, effect)}{_costs(effect, statistics)}: {verdict}{trade}."


def _trade_offs(study: Study, effect: Effect, statistics: Mapping[str, Comparison]) -> str:
    """The other families of figures that a step is shown to change, exploratory as they are."""
    changes = []
    for what, name in SPEAKS_FOR.items():
        other = _matching_effect(effect, statistics.get(name))
        if name == study.record or other is None or not other.different:
            continue
        row = study.figure(name)
        better = (other.effect or 0.0) < 0 if row.better == "lower" else (other.effect or 0.0) > 0
        size = f"{row.label} {change(other.effect, other, row)}, {interval(other, row)}"
        changes.append(f"{'better' if better else 'worse'} {what} ({size})")
    return f"; exploratory: {sentence_list(changes)}" if changes else ""


def _opening(row: Figure, effect: Effect) -> str:
    step = f"{effect.factor} {effect.from_} to {effect.to}"
    if effect.factor in SIDES:
        step = f"the {effect.from_} to the {effect.to} {effect.factor}"
    start = f"Going from {step} changes the {row.heading} by {change(effect.effect, effect, row)}"
    if effect.low is None:
        return f"{start}, which is not tested"
    if effect.low == effect.high:
        return f"{start} in every seed"
    return f"{start} (95 % interval {interval(effect, row)})"


def _costs(effect: Effect, statistics: Mapping[str, Comparison]) -> str:
    costs = []
    for name, unit in ((PARAMETERS, "parameters"), (FLOPS, "MFLOPs an image"), (SECONDS, "s of training")):
        other = _matching_effect(effect, statistics.get(name))
        if other is None or other.effect is None:
            continue
        within = f" ({interval(other, name)})" if other.low is not None and other.low != other.high else ""
        costs.append(f"{change(other.effect, other, name)} {unit}{within}")
    return f", at {sentence_list(costs)}" if costs else ""


def _verdict(row: Figure, effect: Effect, statistics: Mapping[str, Comparison]) -> str:
    low, high = effect.low, effect.high
    if low is None or high is None:
        return "no more than a hint"
    if low == high:
        return "the two give the same results" if low == 0 else "a constant, which leaves nothing to test"
    if row.better == "higher":
        low, high = -high, -low
    more, less = _cost_signs(effect, statistics)
    if effect.different:
        if high < 0:
            return "better" + (
                "" if more and less else ", and that is what the cost buys" if more else ", and no more cost is shown"
            )
        return "worse" if more and less else _does_not_pay(more=more, less=less)
    if more and not less and low < 0:
        gain = f"{-low * row.scale:.{decimals((high - low) / 2 * row.scale)}f}"
        return f"no gain is shown that would pay for it, and one of more than {gain} would be outside the interval"
    if more and not less:
        return "no gain is shown that would pay for it"
    return "neither better nor worse is shown"


def _does_not_pay(*, more: bool, less: bool) -> str:
    if more:
        return "the more complex one does not pay"
    return "worse; it is also the cheaper one" if less else "worse"


def _cost_signs(effect: Effect, statistics: Mapping[str, Comparison]) -> tuple[bool, bool]:
    """Whether the step increases any known cost, and whether it decreases any."""
    more = less = False
    for name in (FLOPS, PARAMETERS, SECONDS):
        comparison = statistics.get(name)
        other = _matching_effect(effect, comparison)
        if comparison is None or other is None or other.effect is None:
            continue
        if name == SECONDS:  # times vary by chance, so their interval decides
            more |= other.low is not None and other.low > 0
            less |= other.high is not None and other.high < 0
        else:
            share = other.effect / max(cell.mean or 0.0 for cell in comparison.cells.values())
            more |= share > EQUAL_COST
            less |= share < -EQUAL_COST
    return more, less


def _interaction(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """Whether the effect of one factor depends on another: the one that is shown best."""
    row = study.figure(study.record)
    known = [one for one in statistics[row.name].effects if ":" in one.factor and one.p_adjusted is not None]
    if not known:
        return
    effect = min(known, key=lambda one: one.p_adjusted or 0.0)
    one, other = effect.factor.split(":")
    size = f"{change(effect.effect, effect, row)}, 95 % interval {interval(effect, row)}{_adjusted(effect)}"
    if effect.different:
        yield (
            f"{one.capitalize() if one in SIDES else one} and {other} do not simply add up: the {row.heading} of "
            f"{effect.to} is off by {size} from what the two steps from {effect.from_}, taken one at a time, add up to."
        )
    else:
        asked = f"the clearest of {len(known)} interactions" if len(known) > 1 else "interaction"
        yield f"That the effect of the {one} depends on the {other} is not shown ({asked} {size})."


def _network(study: Study, cell: str, axis: int) -> str:
    """A cell by its levels of all factors but one."""
    return "-".join(level for index, level in enumerate(study.levels[cell]) if index != axis) or cell


def _each_at_its_best(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    """The test totals of the networks, each at the level of a swept number with its lowest validation total."""
    validation, quality = statistics.get("val.total"), statistics[TOTAL]
    other = [(axis, factor) for axis, factor in enumerate(study.factors) if factor not in SIDES]
    if validation is None or len(other) != 1 or len(study.factors) < 2:
        return
    axis, factor = other[0]
    if not all(map(is_number, study.factors[factor])):
        return
    chosen: dict[str, str] = {}
    for cell in ranked("val.total", validation):
        chosen.setdefault(_network(study, cell, axis), cell)
    if len(chosen) not in range(2, MOST_NAMED + 1) or not study.comparable(TOTAL):
        return
    totals = "; ".join(
        f"{_network(study, cell, axis)} at {study.levels[cell][axis]}: {figure(TOTAL, quality.cells[cell])}"
        for cell in ranked(TOTAL, quality)
        if cell in chosen.values()
    )
    yield f"Each at the {factor} of its lowest validation total, the test totals are {totals}."


def _other_factors(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    row = study.figure(study.record)
    sign = -1 if row.better == "higher" else 1
    for factor in study.factors:
        known = [one for one in statistics[row.name].effects if one.factor == factor and one.effect is not None]
        if factor in SIDES or not known:
            continue
        effect = min(known, key=lambda one: sign * (one.effect or 0.0))
        doubt = "" if effect.different else "; a difference is not shown"
        mean = ", the mean over all networks" if len(study.factors) > 1 else ""
        yield f"{_opening(row, effect)}{mean}{doubt}{_trade_offs(study, effect, statistics)}."


def _samplers(study: Study) -> Iterator[str]:
    """Whether samples of the prior are worse than samples of a mixture fitted to the codes."""
    pairs = {
        cell: pair
        for cell, own in sampled(study).items()
        for pair in own
        if (pair.a, pair.b) == ("mixture", "prior") and pair.p is not None
    }
    shown = {cell: pair for cell, pair in pairs.items() if pair.different and pair.difference}
    closer = [cell for cell, pair in shown.items() if (pair.difference or 0) < 0]
    if not pairs:
        return
    subject = "samples of a mixture fitted to the training codes"
    if not shown:
        yield f"That {subject} are any closer to the test images than samples of the prior is not shown."
    elif not closer:
        where = _where(study, list(shown), pairs)
        yield f"S{subject[1:]} are further from the test images than samples of the prior{where}."
    else:
        order = sorted((pairs[cell] for cell in closer), key=lambda pair: -(pair.difference or 0.0))
        widest = max(order, key=lambda pair: (pair.high or 0.0) - (pair.low or 0.0))
        ends = (order[0].difference, order[-1].difference)
        sizes = dict.fromkeys(change(size, widest, SAMPLERS["mixture"]) for size in ends)
        within = f", 95 % interval {interval(order[0], SAMPLERS['mixture'])}" if len(closer) == 1 else ""
        yield (
            f"The codes are not spread as the prior is: {subject} are closer to the test images than samples of the "
            f"prior{_where(study, closer, pairs)} (Fréchet distance {' to '.join(sizes)}{within})."
        )


def _where(study: Study, cells: Sequence[str], asked: Mapping[str, Pair]) -> str:
    if len(cells) < len(asked):
        names = f"{len(cells)} of {len(asked)} cells" if len(cells) > MOST_NAMED else _labels(study, cells, "and")
        return f" in {names}"
    return " in every cell" if len(cells) > 1 else ""


def _gap(study: Study, statistics: Mapping[str, Comparison]) -> Iterator[str]:
    train = statistics.get("train.total")
    shares = [
        found.mean / mean - 1
        for cell in study.cells
        if (found := statistics[TOTAL].cells[cell]).mean is not None
        and train is not None
        and (mean := train.cells[cell].mean)
        and mean > 0
    ]
    if shares:
        low, high = (f"{100 * share:+.1f} %" for share in (min(shares), max(shares)))
        by = low if low == high else f"{low} to {high}"
        yield f"The test total differs from the training total of the last epoch by {by}.".replace("-", "−")


def _matching_effect(effect: Effect, comparison: Comparison | None) -> Effect | None:
    key = (effect.factor, effect.from_, effect.to)
    found = comparison.effects if comparison is not None else ()
    return next((other for other in found if (other.factor, other.from_, other.to) == key), None)


def _level(row: Figure, comparison: Comparison, cell: str) -> str:
    return f"{(comparison.cells[cell].mean or 0.0) * row.scale:.{row.digits + 1}f}".replace("-", "−")


def _versus(study: Study, row: Figure, comparison: Comparison, cell: str, other: str) -> str:
    """A cell compared with another: 'b is 0.00022 higher, 95 % interval …'."""
    pair = comparison.pair(cell, other)
    assert pair is not None
    if pair.low == pair.high:
        same = "the same" if pair.difference == 0 else f"{change(pair.difference, name=row)} from it"
        return f"{study.label(cell)} is {same} in every seed"
    more = "higher" if (pair.difference or 0) >= 0 else "lower"
    size = change(pair.difference, pair, row).lstrip("+−")
    return f"{study.label(cell)} is {size} {more}, 95 % interval {interval(pair, row)}"


def _labels(study: Study, cells: Sequence[str], last: str = "or") -> str:
    if len(cells) > MOST_NAMED:
        return f"{len(cells)} others"
    return sentence_list([study.label(cell) for cell in cells], last)


def _over(seeds: int) -> str:
    return f" over {seeds} seeds" if seeds > 1 else ""
