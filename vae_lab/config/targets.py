"""Check all `_target_` keys before anything is built, and build their objects."""

import functools
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from pydantic import BaseModel

from vae_lab.config.errors import ConfigError, Problem, choices
from vae_lab.config.identity import CHANGES_RESULTS
from vae_lab.config.schema import Config, Network, Observer, TrainerConfig
from vae_lab.config.vocabulary import ForeignBlock

HYDRAS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")
"""Hydra's own keys, which control how the class is called."""


def check_targets(config: Config, groups: Sequence[str] = ()) -> None:
    """Import every `_target_`, or those of some groups, and check the keys beside it against its signature.

    Raises:
        ConfigError: for a target that cannot be imported or takes no such argument.
    """
    problems = []
    for key, node in config.nodes().items():
        if groups and re.split(r"[.\[]", key)[0] not in groups:
            continue
        values = node.model_dump()
        target = values["_target_"]
        try:
            found = pkgutil.resolve_name(target)
        except Exception as error:  # the import runs the user's code, which may raise anything
            problem = f"must name something that can be imported, but is {target!r} ({type(error).__name__}: {error})"
            problems.append(Problem(f"{key}._target_", problem))
            continue
        if not callable(found):
            problem = f"must name a class or a function, but {target!r} is a {type(found).__name__}"
            problems.append(Problem(f"{key}._target_", problem))
            continue
        names = [name for name in values if not name.startswith("_") and name not in _own_keys(node)]
        problems += _unknown_arguments(key, found, names)
    if problems:
        raise ConfigError(*problems)


def _own_keys(node: BaseModel) -> set[str]:
    """The keys of a node that are for us, and no arguments of its target."""
    if isinstance(node, ForeignBlock):
        return {"repeat", "grows"}
    return {CHANGES_RESULTS} if isinstance(node, Observer) else set()


def _unknown_arguments(key: str, function: Any, names: Sequence[str]) -> Iterable[Problem]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have none
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in names:
        if name not in parameters:
            yield Problem(
                f"{key}.{name}",
                f"{getattr(function, '__name__', function)} takes no such argument; {choices(name, parameters)}",
            )


def check_trainer(config: TrainerConfig, trainer: type) -> None:
    """Check the trainer's arguments against the signature of Lightning's `Trainer`.

    Raises:
        ConfigError: for an argument that it does not have.
    """
    problems = list(_unknown_arguments("trainer", trainer, list(config.arguments())))
    if problems:
        raise ConfigError(*problems)


Find = Callable[[str], Any]
_find: ContextVar[Find | None] = ContextVar("find", default=None)


@contextmanager
def found_by(find: Find) -> Iterator[None]:
    """Within this context, `build` resolves a `_target_` by `find` and not by Hydra, which would import it."""
    token = _find.set(find)
    try:
        yield
    finally:
        _find.reset(token)


def build(node: BaseModel, **arguments: Any) -> Any:
    """Build the object of a node, with `arguments` added to its own; errors of the target are raised unchanged."""
    if isinstance(node, Network):
        arguments["_recursive_"] = False  # a block can be built only once its input shape is known
    values = node.model_dump(exclude=_own_keys(node))
    find = _find.get()
    if find is not None:
        return _instantiated(values | arguments, find)
    try:
        built = hydra.utils.instantiate(values, _convert_="all", **arguments)
    except InstantiationException as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None
    if isinstance(built, functools.partial):
        # Hydra's own kind of partial checks its target again at each call: 2 ms per training step for an objective.
        return functools.partial(built.func, *built.args, **built.keywords)
    return built


def _instantiated(value: Any, find: Find) -> Any:
    """Build a resolved node as Hydra does: call every `_target_` in it, the innermost first."""
    if isinstance(value, list):
        return [_instantiated(one, find) for one in value]
    if not isinstance(value, dict):
        return value
    if "_target_" not in value:
        return {key: _instantiated(one, find) for key, one in value.items()}
    positional = value.get("_args_", [])
    named = {key: one for key, one in value.items() if key not in HYDRAS}
    if value.get("_recursive_", True):
        positional, named = _instantiated(positional, find), _instantiated(named, find)
    target = find(value["_target_"])
    return functools.partial(target, *positional, **named) if value.get("_partial_") else target(*positional, **named)
