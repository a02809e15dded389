"""Gather runs into a study: their table, their cells in the sweep's order, and which are missing or not comparable."""

import functools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vae_lab.config import NOT_IDENTIFYING, USUAL_SOURCES, flatten, identifying, signatures
from vae_lab.config.fingerprint import CODE, IMAGES
from vae_lab.config.identity import BESIDE_TRAINING, changes_results, is_place
from vae_lab.config.published import published_of_the_default_job
from vae_lab.config.versions import upgraded
from vae_lab.results import figures
from vae_lab.results.files import CONFIG, RESULT, Result, read_config, read_fingerprint, read_result, read_test_images
from vae_lab.results.integrity import SHOWN, damaged
from vae_lab.results.locks import holder

SIDES = ("encoder", "decoder")

BASELINE = "vanilla"
"""The default encoder and decoder: they come first if the runs do not record the sweep's order."""

FAMILIES = ("train", "val", "test", "timing", "model", "memory")
"""The parts of a result that contain figures."""

CLOCKED = ("timing", "memory")
"""The parts that depend on the machine."""

VARY = "vary"
"""The key that says what a seed changes."""

# Losses on different test images are never comparable, even if the sweep varies these keys, nor is another spread.
_TEST_IMAGES = (
    VARY,
    "data._target_", "data.dataset", "data.image_shape", "data.num_test", "data.test_images",
    "data.binarize", "data.binarize_seed", "data.background",
    "trainer.limit_test_batches",
)  # fmt: skip
# Training data and length: cells that differ in these without being swept were not trained alike.
_CONDITIONS = (
    "data", "objective", "trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.precision",
    "trainer.limit_train_batches", "trainer.accumulate_grad_batches",
)  # fmt: skip
# The networks themselves, keys that follow from other keys, and keys that only affect the time.
_NO_CONFOUND = (
    "encoder", "decoder", "match", "seed", "name", "scheduler.max_lr", "scheduler.total_steps", "scheduler.T_max",
    "likelihood.sigma", "objective._partial_",
    "trainer.threads", "trainer.accelerator", "trainer.devices", "trainer.detect_anomaly",
    "trainer.limit_val_batches", *NOT_IDENTIFYING,
)  # fmt: skip
_BROUGHT = {"latent": ("posterior", "prior")}
"""Group → the groups that some of its choices choose too."""
TOTAL = "test.total"
"""The metric of record where all cells can be compared by it; see `Study.record`."""
LARGEST = 1e150
"""Larger figures count as not finite, because their squares overflow."""

BUSY = 0.75
"""A run that used a smaller share of its processors is named: its times may say little."""
FRECHET, FLOOR = "test.fid_reconstructions", "test.fid_floor"
FEW_IMAGES = 500
"""Fréchet distances of fewer test images are warned of."""

DEEPEST = 10
MOST_LISTED = 6
"""Largest number of cells or keys that one note names."""


class StudyError(ValueError):
    """No study can be made of the folders."""


class Hole(NamedTuple):
    """A run that is missing from the study, and the reason."""

    run: str
    reason: str


@dataclass(frozen=True)
class Record:
    """One run: its folder, its result, and the name of its cell in this study."""

    folder: Path
    result: Result
    cell: str
    config: Mapping[str, Any]
    """The flattened configuration, upgraded to this version, without callbacks and loggers that change no result.

    Empty if the file is missing.
    """
    given: Mapping[str, str]
    """The overridden keys that can change a result, without encoder and decoder, with their values as typed."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of its images and of the user's code in it."""
    published: Any = None
    """The published figures of its model, as its configuration has them; None if there are none."""

    @property
    def sweep(self) -> str:
        """The name of its sweep."""
        return self.folder.parts[-3] if len(self.folder.parts) >= 3 else ""

    @property
    def epochs(self) -> int | None:
        """Epochs trained; None if not recorded."""
        return len(self.result.timing.epoch_seconds) or None

    @property
    def identity(self) -> tuple[str, ...]:
        """What two runs have in common that differ in their seeds at most; see `_with_known_contents`."""
        return (self.result.config_sha256, *(f"{what} {value}" for what, value in self.contents.items()))

    @property
    def label(self) -> str:
        """The run's name in sentences."""
        return f"{self.cell}/seed-{self.result.seed}"


@dataclass(frozen=True)
class Study:
    """Runs to compare.

    Args:
        folders: the folders that were searched.
        records: every run with a result, in the order of the sweep.
        compared: the finished runs that have the same configuration as the other seeds of their cell.
        factors: the keys that vary between cells: factor → its levels, in the order of the sweep.
        levels: cell → its level of each factor.
        holes: runs that are missing, failed or left out.
        left_out: one sentence per run that is not compared.
    """

    folders: tuple[Path, ...]
    records: tuple[Record, ...]
    compared: tuple[Record, ...]
    factors: Mapping[str, tuple[str, ...]]
    levels: Mapping[str, tuple[str, ...]]
    holes: tuple[Hole, ...]
    left_out: tuple[str, ...]

    @cached_property
    def symptoms(self) -> tuple[str, ...]:
        """One sentence per problem of a model."""
        return tuple(_symptoms(self))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """One sentence per thing that cannot be compared, with the reason."""
        return (*self.left_out, *_comparability(self))

    @cached_property
    def cells(self) -> tuple[str, ...]:
        """The cells of all records, in the order of the sweep."""
        return tuple(dict.fromkeys(record.cell for record in self.records))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the compared runs."""
        return tuple(sorted({record.result.seed for record in self.compared}))

    @cached_property
    def sweeps(self) -> tuple[str, ...]:
        """The names of the sweeps."""
        return tuple(dict.fromkeys(record.sweep for record in self.records))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per run, with dotted column names, as in `results.csv`."""
        return pd.DataFrame([_row(record) for record in self.records])

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The figures that at least one compared run has."""
        numbers = self._figures.columns[self._figures.notna().any()]
        return tuple(map(str, numbers))

    @cached_property
    def test_images(self) -> Mapping[tuple[str, int], Mapping[str, np.ndarray]]:
        """Cell and seed → the figures that the run has for each test image."""
        return {(record.cell, record.result.seed): read_test_images(record.folder) for record in self.compared}

    @cached_property
    def _figures(self) -> pd.DataFrame:
        places = [(record.result.seed, record.cell) for record in self.compared]
        index = pd.MultiIndex.from_arrays(list(zip(*places, strict=True)) or [[], []])
        return pd.DataFrame([_figures(record.result) for record in self.compared], index=index, dtype=float)

    def values(self, metric: str) -> pd.DataFrame:
        """A figure of the compared runs: one row per seed, one column per cell, NaN where it is missing."""
        if metric not in self._figures:
            return pd.DataFrame(index=list(self.seeds), columns=list(self.cells), dtype=float)
        return self._figures[metric].unstack().reindex(index=list(self.seeds), columns=list(self.cells))

    def grounds(self, metric: str) -> pd.DataFrame:
        """Codes of the conditions under which each figure was measured: figures with equal codes can be compared.

        One row per seed, one column per cell.
        """
        family, hangs_on = metric.partition(".")[0], self.figure(metric).hangs_on
        kinds: dict[Any, int] = {}
        rows: dict[tuple[int, str], int] = {}
        for record in self.compared:
            ground: tuple[Any, ...] = ()
            if family != "model":
                ground = tuple(self.conditions[record.cell].items())
            if hangs_on == "objective":
                ground += self.objectives[record.cell]
            if hangs_on:
                ground += (record.result.nats,)
            if hangs_on == "units":
                ground += (record.result.terms.get(metric.partition(".")[2]),)
            if family in CLOCKED:
                ground += (self.hardware_of(record),)
            rows[record.result.seed, record.cell] = kinds.setdefault(ground, len(kinds))
        index = pd.MultiIndex.from_arrays(list(zip(*rows, strict=True)) or [[], []])
        series = pd.Series(list(rows.values()), index=index, dtype=float)
        return series.unstack().reindex(index=list(self.seeds), columns=list(self.cells))

    def comparable(self, metric: str, cells: Iterable[str] | None = None) -> bool:
        """Whether this figure was measured under the same conditions in all cells, or in these."""
        codes = self.grounds(metric)[list(self.cells if cells is None else cells)].to_numpy()
        return len(set(codes[np.isfinite(codes)])) < 2

    @cached_property
    def record(self) -> str:
        """The metric of record: the first of these by which all cells can be compared.

        It is the test total; for other objectives a bound in nats, the tightest there is; for other likelihoods the
        squared error.
        """
        bounds = [name for name in self.metrics if re.fullmatch(r"test\.iwae_\d+", name)]
        bounds.sort(key=lambda name: -int(name.rpartition("_")[2]))
        for name in (TOTAL, *bounds, "test.elbo", "test.mse"):
            measured = self.values(name).notna().any()
            if self.comparable(name) and all(measured[cell] for cell in self.cells if self.of(cell)):
                return name
        return TOTAL

    @cached_property
    def objectives(self) -> Mapping[str, tuple[str, ...]]:
        """Cell → the configuration of its objective and likelihood, which defines `total`."""
        found: dict[str, tuple[str, ...]] = {}
        for record in self.compared:
            about = ["objective", "likelihood"]  # with σ, which under `mse_kl` hangs on the latent dimensions too
            if signatures.attribute("posterior", str(record.config.get("posterior._target_")), "has_penalty"):
                about.append("posterior")
            own = (f"{key} {value}" for key, value in record.config.items() if _within(key, about))
            found.setdefault(record.cell, tuple(own))
        known = next(filter(None, found.values()), ())
        return {cell: own or known for cell, own in found.items()}

    def figure(self, metric: str) -> figures.Figure:
        """The description of a figure, from the catalogue or from the runs."""
        return figures.find(metric, *self._rows)

    @cached_property
    def _rows(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The descriptions of users' metrics, and the units of the objectives' terms."""
        further: dict[str, Any] = {}
        units: dict[str, str] = {}
        for record in self.compared:
            known = record.result.measured()
            further |= {name: node.model_dump() for name, node in (known.further if known else {}).items()}
            units |= record.result.terms
        return further, units

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """The terms of the objectives, in the order in which they are shown."""
        return tuple(figures.terms_first(term for record in self.compared for term in record.result.terms))

    @cached_property
    def conditions(self) -> Mapping[str, Mapping[str, str]]:
        """Cell → its training and test data and training length, without the keys that the sweep varies."""
        return _conditions(self)

    @cached_property
    def hardware(self) -> tuple[str, ...]:
        """The hardware of the compared runs."""
        return tuple(dict.fromkeys(map(self.hardware_of, self.compared)))

    def hardware_of(self, record: Record) -> str:
        """The hardware of a run: processor or GPU and, unless swept, the number of threads."""
        environment = record.result.environment
        swept = "trainer.threads" in self.factors
        together = f", {environment.processes} processes" if environment.processes > 1 else ""
        return (environment.device if swept else f"{environment.device}, {environment.threads} threads") + together

    def of(self, cell: str) -> list[Record]:
        """The compared runs of a cell, by seed."""
        return sorted((record for record in self.compared if record.cell == cell), key=lambda one: one.result.seed)

    def label(self, cell: str, without: str = "") -> str:
        """A cell's label: encoder and decoder if they vary, then its levels of the other factors.

        Args:
            cell: its name.
            without: a factor to leave out.
        """
        if not without and self._same_levels[self.levels[cell]] > 1:
            return cell
        own = zip(self.factors, self.levels[cell], strict=True)
        words = [f"{factor} {level}" for factor, level in own if factor not in (*SIDES, without)]
        if self.varies_networks or not words:
            result = self._first[cell].result
            words.insert(0, f"{result.encoder}-{result.decoder}")
        return ", ".join(words)

    @property
    def varies_networks(self) -> bool:
        """Whether cells differ in their encoder or decoder, or in nothing that was swept."""
        return not self.factors or bool({*SIDES} & {*self.factors})

    @cached_property
    def _same_levels(self) -> Counter[tuple[str, ...]]:
        return Counter(self.levels[cell] for cell in self.cells)

    @cached_property
    def _first(self) -> Mapping[str, Record]:
        return {record.cell: record for record in reversed(self.records)}


def gather(folders: Sequence[Path]) -> Study:
    """Make a study of the runs under these folders.

    A folder is that of a sweep (`outputs/<name>`), a cell or a run. A run that cannot be read, has failed, or does not
    match the others becomes a hole or a note, never an error.

    Raises:
        StudyError: if a folder does not exist or there is no run in any of them.
    """
    found = find(folders)
    records, holes = _read(found)
    records = _unique_cell_names(_sorted_as_swept(records, found))
    compared, odd_ones = _most_common_configuration(records)
    compared, twice = _without_duplicates(compared)
    holes += [Hole(record.label, record.result.error or "failed") for record in records if not record.result.finished]
    holes += [
        Hole(record.label, "finished, but test.total is not a finite number")
        for record in compared
        if record.result.test.total is None
    ]
    holes += _missing(records, [hole.run for hole in holes])
    factors, levels = _factors(records)
    return Study(
        tuple(folders), tuple(records), tuple(compared), factors, levels, tuple(holes), tuple(odd_ones + twice)
    )


def find(folders: Sequence[Path]) -> list[Path]:
    """The run folders at or under these folders.

    Raises:
        StudyError: if a folder does not exist or there is no run in any of them.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise StudyError(f"there is no folder {folder}")
        found += [path for path in run_folders(folder.absolute()) if path not in found]
    if not found:
        raise StudyError(
            f"there are no runs under {' and '.join(map(str, folders))}; a run is a folder "
            "<name>/<cell>/seed-<n>, so name a folder such as outputs/<name>"
        )
    return found


def run_folders(folder: Path) -> Iterator[Path]:
    """The run folders at or under a folder, at most `DEEPEST` folders below it."""
    nested = False
    for path, subfolders, _ in os.walk(folder):
        subfolders.sort()
        runs = [name for name in subfolders if re.fullmatch(r"seed-\d+", name)]
        nested = nested or bool(runs)
        yield from sorted((Path(path, name) for name in runs), key=lambda run: (len(run.name), run.name))
        inner = [name for name in subfolders if name not in runs and not name.startswith(".")]
        subfolders[:] = inner if len(Path(path).parts) - len(folder.parts) < DEEPEST else []
    if not nested and re.fullmatch(r"seed-\d+", folder.name):
        yield folder


def _read(found: Sequence[Path]) -> tuple[list[Record], list[Hole]]:
    records: list[Record] = []
    holes = []
    configs: dict[tuple[str, str], Mapping[str, Any]] = {}
    for folder in found:
        result = read_result(folder)
        if result is None:
            exists = os.path.exists(folder / RESULT)  # Path.exists() raises without permission
            owner = None if exists else holder(folder)
            reason = f"is in the hands of {owner}" if owner else f"has no {RESULT}: it did not end"
            reason = f"{RESULT} is damaged: {folder / RESULT}" if exists else reason
            holes.append(Hole(f"{folder.parent.name}/{folder.name}", reason))
            continue
        harmed = damaged(folder, result, SHOWN)
        if harmed:
            reason = f"left out, {harmed[0].name} is not the file that it wrote: {harmed[0]}"
            holes.append(Hole(f"{folder.parent.name}/{folder.name}", reason))
            continue
        key = (result.cell, result.config_sha256)
        if not configs.get(key):  # equal for all seeds of a cell, and slow to read
            configs[key] = _config(folder)
        records.append(Record(folder, result, result.cell, {}, {}, read_fingerprint(folder)))
    known = []
    for one in records:
        config = configs[one.result.cell, one.result.config_sha256]
        given = identifying(one.result.overrides, config)
        published = config["published"] if "published" in config else _published(one.result, given)
        known.append(replace(one, config=_flattened(config), given=given, published=published))
    return _with_known_contents(known), holes


def _published(result: Result, given: Mapping[str, str]) -> Any:
    """The published figures of the default job, for a run of a version that did not keep them."""
    networks = {"encoder": result.encoder, "decoder": result.decoder}
    found = published_of_the_default_job().about(networks, {**networks, **given})
    return found and found.model_dump()


def _with_known_contents(records: Sequence[Record]) -> list[Record]:
    """Give runs of one configuration fingerprints of the same things; what is unknown is assumed to be the usual."""
    usual: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for record in records:
        for what, value in record.contents.items():
            usual[record.result.cell, record.result.config_sha256][what][value] += 1
    return [
        replace(
            record,
            contents={
                what: record.contents.get(what, values.most_common(1)[0][0])
                for what, values in sorted(usual[record.result.cell, record.result.config_sha256].items())
            },
        )
        for record in records
    ]


def _config(folder: Path) -> dict[str, Any]:
    """A run's configuration, upgraded to this version, without callbacks and loggers that change no result."""
    config = upgraded(read_config(folder) or {})
    for group in BESIDE_TRAINING:
        nodes = config.pop(group, None)
        changing = (
            {key: node for key, node in nodes.items() if changes_results(node)} if isinstance(nodes, dict) else {}
        )
        if changing:
            config[group] = changing
    return config


def _flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with dotted keys, without those that say where the run writes."""
    flat = flatten({key: value for key, value in config.items() if key != "published"}) if config else {}
    if flat.get("objective.sigma") is not None:
        flat.pop("objective.beta", None)  # it follows, from the number of latent dimensions too
    sources = [flat.pop(key) for key in list(flat) if key.startswith(f"{VARY}[")]
    if flat:
        named = list(map(str, sources or USUAL_SOURCES))
        flat[VARY] = named[0] if len(named) == 1 else f"[{','.join(named)}]"
    if "subset" in sources:
        flat.pop("data.subset_seed", None)
    own = flat.get("name"), flat.get("seed")
    return {key: value for key, value in flat.items() if not is_place(key, value, *own)}


def _sorted_as_swept(records: Iterable[Record], found: Sequence[Path]) -> list[Record]:
    sweeps = list(dict.fromkeys(folder.parent.parent for folder in found))

    def key(record: Record) -> tuple[Any, ...]:
        result = record.result
        position = float("inf") if result.position is None else result.position
        others = (result.encoder != BASELINE, result.decoder != BASELINE, result.encoder, result.decoder, result.cell)
        return (sweeps.index(record.folder.parent.parent), position, *others, result.seed)

    in_order = sorted(records, key=key)
    cells = list(dict.fromkeys(record.cell for record in in_order))
    return sorted(in_order, key=lambda record: (cells.index(record.cell), record.result.seed))


def _unique_cell_names(records: Sequence[Record]) -> list[Record]:
    """If sweeps use one cell name for different configurations, add the sweep to the name: `cell@sweep`."""
    configurations: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    sweeps: dict[tuple[str, tuple[str, ...]], str] = {}
    for record in records:
        configurations[record.cell].add(record.identity)
        sweeps.setdefault((record.cell, record.identity), record.sweep)
    named = []
    for record in records:
        owners = {sweeps[record.cell, identity] for identity in configurations[record.cell]}
        own = sweeps[record.cell, record.identity]
        cell = f"{record.cell}@{own}" if len(owners) > 1 else record.cell
        named.append(replace(record, cell=cell))
    return named


def _most_common_configuration(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The finished runs with their cell's most common configuration and content; a sentence about each other run."""
    groups: dict[str, Counter[tuple[str, ...]]] = defaultdict(Counter)
    first: dict[tuple[str, tuple[str, ...]], Record] = {}
    finished = [record for record in records if record.result.finished]
    for record in finished:
        groups[record.cell][record.identity] += 1
        first.setdefault((record.cell, record.identity), record)
    alike, odd_ones = [], []
    for record in finished:
        usual, _ = groups[record.cell].most_common(1)[0]
        if record.identity == usual:
            alike.append(record)
            continue
        other = first[record.cell, usual]
        differing = _differences(
            {**_flattened(_config(record.folder)), **record.contents}, {**other.config, **other.contents}
        ) or ["another checksum of its configuration"]
        odd_ones.append(
            f"{record.label} is left out: it differs from the other runs of its cell ({'; '.join(differing)})."
        )
    return alike, odd_ones


def _differences(own: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    keys = [key for key in usual if key in own and own[key] != usual[key] and key not in ("seed", "name")]
    return [f"{key} is {own[key]}, not {usual[key]}" for key in keys[:3]]


def _without_duplicates(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Keep each seed of a cell once: if two sweeps have the same run, the first one counts."""
    kept: dict[tuple[str, int], Record] = {}
    notes = []
    for record in records:
        earlier = kept.setdefault((record.cell, record.result.seed), record)
        if earlier is not record:
            notes.append(f"{record.label} is in {earlier.sweep} and in {record.sweep}; the former is used.")
    return list(kept.values()), notes


def _missing(records: Sequence[Record], reported: Sequence[str]) -> list[Hole]:
    """Seeds that other cells have but a cell lacks."""
    seeds = {record.result.seed for record in records if record.result.finished}
    present = {record.label for record in records} | set(reported)
    cells = dict.fromkeys(record.cell for record in records)
    expected = [f"{cell}/seed-{seed}" for cell in cells for seed in sorted(seeds)]
    return [Hole(run, "missing: other cells have this seed") for run in expected if run not in present]


def _factors(records: Sequence[Record]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    given = {record.cell: record.given for record in records}
    keys = ["encoder", "decoder", *dict.fromkeys(key for one in given.values() for key in one)]
    cells: dict[str, dict[str, str]] = {}
    for record in records:
        if record.cell not in cells:
            sides = {"encoder": record.result.encoder, "decoder": record.result.decoder}
            others = {
                key: _level(given[record.cell].get(key, record.config.get(key, "default")))
                for key in keys
                if key not in sides
            }
            cells[record.cell] = sides | others
    levels = {key: tuple(dict.fromkeys(cell[key] for cell in cells.values())) for key in keys}
    varying = {key: values for key, values in levels.items() if len(values) > 1}
    return varying, {cell: tuple(own[key] for key in varying) for cell, own in cells.items()}


def _level(value: Any) -> str:
    """A level as text: 0.010 and 1e-2 are equal, and so are True and true."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return str(int(number)) if number.is_integer() else repr(number)


def sources_of(level: str) -> list[str]:
    """What a seed changes, from a level of `vary`."""
    return level.strip("[]").split(",")


def is_number(text: str) -> bool:
    """Whether a level is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _conditions(study: Study) -> dict[str, dict[str, str]]:
    asked = _crossed(study)
    conditions: dict[str, dict[str, str]] = {}
    images: dict[str, dict[str, str]] = {}

    @functools.cache
    def counts(key: str) -> bool:
        if _within(key, ["data.root"]):
            return False
        return _within(key, _TEST_IMAGES) or (_within(key, _CONDITIONS) and not _within(key, asked))

    for record in study.compared:
        if record.cell not in conditions:
            conditions[record.cell] = {key: str(value) for key, value in record.config.items() if counts(key)}
            images[record.cell] = {what: one for what, one in record.contents.items() if what.startswith(IMAGES)}
    # What is not known of a cell is assumed to be as in the others: a file is missing, or is of an earlier version.
    known = next(filter(None, conditions.values()), {})
    usual = {what: one for own in reversed(images.values()) for what, one in own.items()}
    return {cell: (own or known) | usual | images[cell] for cell, own in conditions.items()}


def _crossed(study: Study) -> list[str]:
    """The factors that are crossed with the networks: each network was trained at every level."""
    axes = {factor: axis for axis, factor in enumerate(study.factors) if factor not in SIDES}
    networks: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in study.records:
        network = f"{record.result.encoder}-{record.result.decoder}"
        for factor, axis in axes.items():
            networks[factor][network].add(study.levels[record.cell][axis])
    return [
        factor
        for factor, by_network in networks.items()
        if all(levels == set(study.factors[factor]) for levels in by_network.values())
    ]


def _within(key: str, sections: Iterable[str]) -> bool:
    """Whether a flattened key is one of these sections or lies in one of them."""
    return any(key == section or key.startswith((f"{section}.", f"{section}[")) for section in sections)


def _symptoms(study: Study) -> Iterator[str]:
    """One sentence per cell and kind of warning; several runs with the same warning are quoted by the first one."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for record in study.compared:
        for warning in record.result.warnings:
            kind = warning.partition(":")[0]
            found.setdefault((record.cell, kind), []).append((record.result.seed, warning))
    for (cell, _), warnings_by_seed in found.items():
        seeds = ", ".join(str(seed) for seed, _ in warnings_by_seed)
        yield f"{study.label(cell)}, seed{'s' if len(warnings_by_seed) > 1 else ''} {seeds}: {warnings_by_seed[0][1]}."


def _comparability(study: Study) -> Iterator[str]:
    yield from _different_conditions(study)
    yield from _confounds(study)
    by_condition: dict[tuple[tuple[str, str], ...], set[tuple[str, ...]]] = defaultdict(set)
    for cell, condition in study.conditions.items():
        by_condition[tuple(condition.items())].add(study.objectives[cell])
    if max(map(len, by_condition.values()), default=0) > 1:
        yield (
            "Totals under different objectives or likelihoods are different quantities: cells are compared by total "
            "within one objective and likelihood only, by reconstruction and KL where their units are the same, and by "
            "bounds in nats where the likelihoods are for the same kind of data."
        )
    if len(study.hardware) > 1:
        where = "; ".join(f"{hardware}: {_runs_on(study, hardware)}" for hardware in study.hardware)
        yield f"Times and memory are compared on the same hardware only ({where})."
    commits = dict.fromkeys(commit for record in study.compared if (commit := record.result.environment.commit))
    if len(commits) > 1 or any(commit.endswith("-dirty") for commit in commits):
        named = " and ".join(commit[:9] + "-dirty" * commit.endswith("-dirty") for commit in [*commits][:MOST_LISTED])
        yield f"The runs are not of one clean commit ({named}): a difference may come from changed code."
    busy = [share for record in study.compared if (share := record.result.timing.cpu_share or 1.0) < BUSY]
    if busy:
        shares = dict.fromkeys(f"{100 * share:.0f}" for share in (min(busy), max(busy)))
        yield (
            f"{len(busy)} of {len(study.compared)} runs used {' to '.join(shares)} % of the processors that they asked "
            "for: they waited, or shared them with other programs. In the latter case their times say little."
        )
    for part in ("torch", "lightning", "python"):
        versions = list(dict.fromkeys(getattr(record.result.environment, part) for record in study.compared))
        if len(versions) > 1:
            yield f"The runs used {part} {' and '.join(versions)}: times may differ for that reason."
    measured = study.compared if FRECHET in study.metrics else ()
    counts = ((_test_count(study, record), record.result.test.model_dump().get("fid_floor")) for record in measured)
    few = [(count, floor) for count, floor in counts if count is not None and count < FEW_IMAGES]
    if few:
        least, floor = min(few, key=lambda one: one[0])
        real = "" if floor is None else f": as many real images have {floor:.2g}"
        yield (
            f"Fréchet distances of {least} test images are too high by an unknown part{real}; from {FEW_IMAGES} "
            "images on they say more."
        )
    bare = [cell for cell in study.cells if any(not record.config for record in study.of(cell))]
    if bare:
        cells = ", ".join(bare[:MOST_LISTED])
        yield f"{CONFIG} is missing or damaged for {cells}: that the conditions were the same could not be checked."


def _test_count(study: Study, record: Record) -> int | None:
    """The number of images that a run was tested on; None if it is not known."""
    images = study.test_images[record.cell, record.result.seed].get("mse")
    configured = record.config.get("data.num_test")
    return len(images) if images is not None else configured if isinstance(configured, int) else None


def _runs_on(study: Study, hardware: str) -> str:
    count = sum(study.hardware_of(record) == hardware for record in study.compared)
    return f"{count} run{'s' if count > 1 else ''}"


def _different_conditions(study: Study) -> Iterator[str]:
    groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for cell, condition in study.conditions.items():
        groups[tuple(condition.items())].append(cell)
    if len(groups) < 2:
        return
    differences = _describe_groups([(cells, dict(condition)) for condition, cells in groups.items()])
    yield f"Losses and times are not compared across different conditions ({differences})."


def _confounds(study: Study) -> Iterator[str]:
    """Differences between cells other than networks and swept keys; they may explain a difference in results."""
    crossed = _crossed(study)
    brought = [key for factor in crossed for key in _BROUGHT.get(factor, ())]
    asked = [*crossed, *brought, *_CONDITIONS, *_TEST_IMAGES, *_NO_CONFOUND]
    ignored: dict[str, bool] = {}
    groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    code: dict[str, set[str]] = defaultdict(set)
    for record in study.compared:
        for what, value in record.contents.items():
            if what.startswith(CODE):
                code[what].add(value)
    changed = {what for what, values in code.items() if len(values) > 1}
    for cell in study.cells:
        config = next((record.config for record in study.of(cell) if record.config), None)
        if config is not None:
            for key in config:
                ignored.setdefault(key, _within(key, asked))
            own = {key: str(value) for key, value in config.items() if not ignored[key]}
            own |= {what: value for what, value in study.of(cell)[0].contents.items() if what in changed}
            groups[tuple(own.items())].append(cell)
    if len(groups) > 1:
        text = _describe_groups([(cells, dict(own)) for own, cells in groups.items()])
        yield f"Cells differ in more than their networks and what was swept; a difference may come from that ({text})."


def _describe_groups(groups: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> str:
    """Describe groups of cells by the keys in which they differ."""
    keys = dict.fromkeys(key for _, own in groups for key in own)
    differing = [key for key in keys if len({own.get(key) for _, own in groups}) > 1]
    described = [
        f"{', '.join(cells[:MOST_LISTED])}{' …' if len(cells) > MOST_LISTED else ''}: "
        + ", ".join(f"{key} {own.get(key, 'not set')}" for key in differing[:MOST_LISTED])
        for cells, own in groups[:MOST_LISTED]
    ]
    return "; ".join(described) + (f"; and {len(groups) - MOST_LISTED} more" if len(groups) > MOST_LISTED else "")


def _row(record: Record) -> dict[str, Any]:
    result = record.result
    row: dict[str, Any] = {
        "name": record.sweep,
        "cell": record.cell,
        "encoder": result.encoder,
        "decoder": result.decoder,
        "seed": result.seed,
        "status": result.status,
        "error": result.error,
        "overrides": " ".join(result.overrides),
        "config_sha256": result.config_sha256,
        "epochs": record.epochs,
    }
    row |= _figures(result)
    return row | {f"environment.{key}": value for key, value in result.environment.model_dump().items()}


def _figures(result: Result) -> dict[str, float | None]:
    """The numbers of a result by their dotted names; None for values that are null or not finite."""
    figures: dict[str, float | None] = {}
    for family in FAMILIES:
        for key, value in flatten(getattr(result, family).model_dump(), family).items():
            if value is None or (type(value) in (int, float) and "[" not in key):
                figures[key] = value if value is not None and abs(value) < LARGEST else None
    return figures
