"""The Hydra sweeper `optuna`, and its checks and messages before it starts."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vae_lab import compat, results
from vae_lab.config import NOT_IDENTIFYING, ConfigError, Problem, Run, explain, is_complaint, words
from vae_lab.config.composing import Composer
from vae_lab.results.trials import Choice, Number, Trial, Trials, TrialsError, Value, bare, read_trials
from vae_lab.search.loop import search
from vae_lab.search.options import Options, options
from vae_lab.search.space import ends, overrides, parse
from vae_lab.study.searches import WEIGHTED, weighs_what_it_searches
from vae_lab.training import plan as plans

TARGET = "hydra_plugins.vae_lab.Optuna"
"""The name in conf/hydra/sweeper/optuna.yaml; Hydra accepts only plugins of the package `hydra_plugins`."""
PACKAGE = "optuna"
ALWAYS = ("val.total", "val.reconstruction")
"""The figures that every objective has."""


class Optuna(Sweeper):
    """Passes trials to the launcher as the basic sweeper passes the runs of a grid."""

    def __init__(self, **settings: Any) -> None:
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's arguments, and create the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the planned search.

        Raises:
            HydraException: if another process runs the same search.
        """
        assert self.config is not None
        (planned,) = Planned.under_way
        folder = planned.folder
        with results.locked(folder) as owner:
            if owner is not None:
                raise HydraException(f"the search under {folder} is in the hands of {owner}")
            OmegaConf.save(self.config, folder / "multirun.yaml")
            chosen = planned.options
            search(planned.record, folder, chosen.n_trials, chosen.n_jobs, planned.name, self._launch)

    def _launch(self, trials: Sequence[Trial]) -> list[Trial]:
        assert self.launcher is not None
        (planned,) = Planned.under_way
        distinct = {one.run: [*planned.record.fixed, *overrides(one.values)] for one in trials}
        returned = self.launcher.launch([*distinct.values()], initial_job_idx=trials[0].number)
        for one in returned:
            _ = one.return_value  # raises the launcher's error; a run's own error is in its result
        return [planned.outcome(one) for one in trials]


def register() -> None:
    """Register the sweeper with Hydra under a name that Hydra accepts; pickle uses its own name."""
    compat.name_plugin(TARGET, Optuna)


def is_chosen(config: DictConfig) -> bool:
    """Whether this multirun uses the sweeper `optuna`."""
    return str(config.hydra.sweeper.get("_target_")) == TARGET


class Planned:
    """A search that is about to start or to resume.

    Args:
        config: the configuration that Hydra composed for the whole multirun.
        chosen: the options of the search.
        record: its trials so far.
    """

    under_way: ClassVar[list["Planned"]] = []

    def __init__(self, config: DictConfig, chosen: Options, record: Trials) -> None:
        self.options = chosen
        self.folder = Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)
        self.runs: list[Run] = []
        """The runs of its trials, each once; the list grows with the trials."""
        self._composer = Composer(config)
        self._fixed = record.fixed
        self._by_name: dict[str, Run] = {}
        self.record = record.model_copy(update={"trials": [self._reopened(one) for one in record.trials]})

    def composed(self, values: Mapping[str, Value]) -> DictConfig:
        """The configuration of the run with these values.

        Raises:
            ConfigError: if a choice or a key does not exist.
        """
        with _explained():
            return self._composer.run([*self._fixed, *overrides(values)])

    def name(self, values: Mapping[str, Value]) -> str:
        """The name of the run with these values; the run is added to `runs`."""
        run = Run.of(self.composed(values))
        if str(run) not in self._by_name:
            self._by_name[str(run)] = run
            self.runs.append(run)
        return str(run)

    def corners(self) -> Iterator[DictConfig]:
        """The configurations of the runs at the corners of the space, which show the problems of all runs."""
        return map(self.composed, ends(self.record.space))

    def check(self, corners: Sequence[Run]) -> None:
        """Check the search itself, not its runs.

        Raises:
            ConfigError: if its figure does not exist, or another process runs this search.
        """
        if any(getattr(run.config.data, "num_val", 1) == 0 for run in corners):
            problem = f"must be at least 1, since the search goes by {self.options.metric}, but is 0"
            raise ConfigError(Problem("data.num_val", problem))
        self._check_metric(corners)
        owner = results.holder(self.folder)
        if owner is not None:
            raise ConfigError(Problem("name", f"the search under {self.folder} is in the hands of {owner}"))

    def _check_metric(self, corners: Sequence[Run]) -> None:
        metric = self.options.metric
        if metric in ALWAYS:
            return
        known = [(run, _figures(run)) for run in corners]
        lacking = [(run, names) for run, names in known if names is not None and metric not in names]
        if lacking:
            run, names = lacking[0]
            searched = [word for word in run.overrides if word.partition("=")[0] in self.record.space]
            where = f" with {' '.join(searched)}" if len(lacking) < len(known) else ""
            problem = f"is {metric}, which {run.config.objective.target} does not have{where}"
            raise ConfigError(Problem("hydra.sweeper.metric", f"{problem}; known: {', '.join(names)}"))

    def outcome(self, trial: Trial) -> Trial:
        """A trial with the result of its run."""
        run = self._by_name[trial.run]
        result = plans.finished(run)
        loss = None if result is None else _loss(run, result, self.options.metric)
        if loss is not None:
            return trial.model_copy(update={"state": "finished", "loss": loss})
        found = results.read_result(run.directory)
        has_failed = result is not None or (found is not None and not found.finished)
        return trial.model_copy(update={"state": "failed" if has_failed else "open", "loss": None})

    def _reopened(self, trial: Trial) -> Trial:
        """A recorded trial; open again if its run lost files or lacks test metrics that are requested now."""
        name = self.name(trial.values)
        run = self._by_name[name]
        result = plans.finished(run) if trial.state == "finished" else results.read_result(run.directory)
        is_known = result is not None and (trial.state == "failed" or plans.measured(run, result))
        if trial.state == "open" or not is_known:
            return trial.model_copy(update={"run": name, "state": "open", "loss": None})
        return trial.model_copy(update={"run": name})

    def lines(self) -> Iterator[str]:
        """The search in words: its trials, the time they may take, and its space."""
        trials, most = self.record.trials, max(self.options.n_trials, len(self.record.trials))
        counts = Counter[str](one.state for one in trials)
        counts["to do"] = most - len(trials)
        labels = {"finished": "finished", "failed": "failed", "open": "to go on with", "to do": "to do"}
        states = ", ".join(f"{counts[state]} {text}" for state, text in labels.items() if counts[state])
        folder = os.path.relpath(self.folder)
        title = f"a search of {most} trial{'s' if most > 1 else ''} for the {self.record.goal} {self.options.metric}"
        yield f"Plan: {title} under {folder}: {states}. {self._time(counts['open'] + counts['to do'])}".rstrip()
        for key, parameter in self.record.space.items():
            yield f"  {bare(key)}: {in_words(parameter)}"
        if weighs_what_it_searches(self.record):
            yield f"  Note: {WEIGHTED}"

    def _time(self, todo: int) -> str:
        if not todo:
            return ""
        walls = [wall for run in self.runs if (wall := plans.wall(run.directory))]
        if not walls:
            return "How long it takes is not known before a run has finished."
        seconds = max(1, round(todo * mean(walls)))
        return f"About {timedelta(seconds=seconds)} one after another, judged by {len(walls)} finished runs."


def _figures(run: Run) -> list[str] | None:
    """The figures that a search of such runs can go by; None if its parts cannot be built, which later checks report.

    The objective is built, since its keys may decide which terms it has.
    """
    from vae_lab.evaluation.runs import validation_bound  # imports torch
    from vae_lab.training.parts import terms

    try:
        names = terms(run.config)
        has_bound = validation_bound(run.config, dict.fromkeys(names, 1.0)) is not None
    except Exception:  # a user's class may raise anything
        return None
    return [*(f"val.{name}" for name in names), *(["val.elbo"] if has_bound else [])]


def _loss(run: Run, result: results.Result, metric: str) -> float | None:
    """The value to minimise."""
    if metric != "val.elbo":
        return cast("float | None", result.val.model_dump().get(metric.partition(".")[2]))
    from vae_lab.evaluation.runs import validation_bound  # imports torch

    bound = validation_bound(run.config, result.val.model_dump())
    return None if bound is None else -bound


def in_words(parameter: Choice | Number) -> str:
    """A parameter in words."""
    if isinstance(parameter, Choice):
        return ", ".join(parameter.choices)
    step = f" in steps of {parameter.step:g}" if parameter.step is not None else ""
    kind = f"{', whole numbers' if parameter.whole and not step else ''}{', logarithmic' if parameter.log else ''}"
    return f"{parameter.low:g} to {parameter.high:g}{step}{kind}"


def plan(config: DictConfig) -> Planned:
    """The search that Hydra's multirun is about to run.

    Raises:
        ConfigError: if optuna is missing, an option or the space is wrong, or another search has the name.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        problem = f"optuna needs the package {PACKAGE}, which is not installed"
        raise ConfigError(
            Problem("hydra/sweeper", f"{problem}: pip install 'vae-lab[{PACKAGE}]', or pip install {PACKAGE}")
        )
    with _explained():
        str(config.name)  # a default name is the time: resolved now, so that all runs have the same
        node = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        assert isinstance(node, dict)
        chosen = options({str(key): value for key, value in node.items()})
        given = node.get("params") or {}
        typed = [*(f"{key}={value}" for key, value in given.items()), *words(config.hydra)]
        space, fixed = parse(typed, config, GlobalHydra.instance().config_loader())
    asked = Trials(
        metric=chosen.metric, sampler=chosen.sampler, seed=chosen.seed, fixed=sorted(fixed), space=dict(space)
    )
    folder = Path(config.hydra.runtime.cwd, config.hydra.sweep.dir)
    try:
        found = read_trials(folder)
    except (TrialsError, OSError) as error:
        raise ConfigError(Problem("name", f"{error}; choose another name, or delete that file")) from error
    if found is not None:
        _check_same(found, asked, folder)
    planned = Planned(config, chosen, asked.plus(found.trials if found is not None else []))
    Planned.under_way[:] = [planned]
    return planned


def _check_same(found: Trials, asked: Trials, folder: Path) -> None:
    """Check that a recorded search has the same settings: trials of another space or figure do not apply."""
    before, now = found.model_dump(), asked.model_dump()
    differing = [
        f"hydra.sweeper.{key} was {before[key]}, is {now[key]}"
        for key in ("metric", "sampler", "seed")
        if before[key] != now[key]
    ]
    spaces = [{key: in_words(parameter) for key, parameter in one.space.items()} for one in (found, asked)]
    for key in dict.fromkeys(key for one in spaces for key in one):
        was, is_now = (one.get(key, "not searched") for one in spaces)
        if was != is_now:
            differing.append(f"{bare(key)} was {was}, is {is_now}")
    fixed = [{key: value for key, _, value in (word.partition("=") for word in one.fixed)} for one in (found, asked)]
    for key in dict.fromkeys(key for one in fixed for key in one):
        was, is_now = (one.get(key, "not set") for one in fixed)
        if was != is_now and key not in NOT_IDENTIFYING and key.partition(".")[0] not in NOT_IDENTIFYING:
            differing.append(f"{bare(key)} was {was}, is {is_now}")
    if differing:
        problem = f"{os.path.relpath(folder)} holds another search ({'; '.join(differing)}); choose another name"
        raise ConfigError(Problem("name", f"{problem}, or delete that folder"))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if not is_complaint(error):
            raise
        raise explain(error) from error
