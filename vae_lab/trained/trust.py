"""Which classes an untrusted configuration may name."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from vae_lab.config import HYDRAS, Config, ConfigError, Problem
from vae_lab.model.interfaces import Latent

HOMES = ("vae_lab", "torch.nn")
"""Packages whose classes are always allowed."""
KEPT_OUT = ("torch.nn.parallel",)
"""Excluded: wrappers that communicate with other processes."""
SIDES = ("encoder", "latent", "posterior", "prior", "decoder", "likelihood")
MOST_MODULES = 2000
BUILT = (nn.Module, Latent)
"""The base classes of a model's parts."""

Buildable = type[nn.Module] | type[Latent]
Allowed = Buildable | str


class Trust:
    """The allowed classes: those of `vae_lab`, of `torch.nn`, and those that the caller allows.

    A module is imported only after its name is found to be allowed.

    Args:
        allow: classes, and names of packages, modules or classes.

    Raises:
        ValueError: if `allow` contains anything else.
    """

    def __init__(self, allow: Allowed | Iterable[Allowed] = ()) -> None:
        given = [allow] if isinstance(allow, str | type) or not isinstance(allow, Iterable) else list(allow)
        for one in given:
            if not _is_name(one) and not (isinstance(one, type) and issubclass(one, BUILT)):
                raise ValueError(
                    f"allow takes torch.nn.Module classes and dotted names such as 'my_package', but got {one!r}"
                )
        self.classes = [one for one in given if not isinstance(one, str)]
        self.homes = (*HOMES, *(one for one in given if isinstance(one, str)))

    def classes_of(self, settings: Config) -> dict[str, Buildable]:
        """The class of every `_target_` of a configuration's model parts, including those in arguments.

        Raises:
            ConfigError: if one is not allowed, or sets an argument that an untrusted file must not set.
        """
        found = {}
        for side in SIDES:
            network = getattr(settings, side).model_dump()
            for key, node in _nodes(network, side):
                kind = self.find(f"{key}._target_", node["_target_"])
                _check_arguments(key, node, kind)
                found[node["_target_"]] = kind
            if _modules(network, found) > MOST_MODULES:
                raise ConfigError(Problem(side, f"would be made of more than {MOST_MODULES:,} modules"))
        return found

    def find(self, key: str, name: Any) -> Buildable:
        """Find the class of a name.

        Raises:
            ConfigError: with the key, if it is not allowed.
        """
        if not _is_name(name):
            raise ConfigError(Problem(key, f"must be the name of a class, but is {name!r}"))
        kind = next((kind for kind in self.classes if _names(name, kind)), None)
        if kind is not None:
            return kind
        module, _, attribute = name.rpartition(".")
        if not self._has(name) or not module:
            top = name.partition(".")[0]
            raise ConfigError(
                Problem(
                    key,
                    f"{name!r} is neither of vae_lab nor of torch.nn, and nothing else is built unless you allow it; "
                    f"if you trust that package, add allow=[{top!r}]",
                )
            )
        try:
            thing = getattr(importlib.import_module(module), attribute, None)
        except Exception as error:  # an allowed package's own code runs here
            raise ConfigError(Problem(key, f"{name!r} cannot be imported ({type(error).__name__}: {error})")) from error
        if not isinstance(thing, type) or not issubclass(thing, BUILT):
            raise ConfigError(Problem(key, f"{name!r} is no torch.nn.Module class, and nothing else is built"))
        if thing not in self.classes and not self._has(f"{thing.__module__}.{thing.__qualname__}"):
            raise ConfigError(
                Problem(key, f"{name!r} is a class of {thing.__module__}, which is not allowed under any other name")
            )
        return thing

    def _has(self, name: str) -> bool:
        return _within(name, self.homes) and not _within(name, set(KEPT_OUT) - set(self.homes))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", value) is not None


def _within(name: str, homes: Iterable[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def _names(name: str, kind: type) -> bool:
    """Whether a name is the full name of a class, or an alias of it in a module that is already imported."""
    module, _, attribute = name.rpartition(".")
    known = getattr(sys.modules.get(module), "__dict__", {})
    return name == f"{kind.__module__}.{kind.__qualname__}" or known.get(attribute) is kind


def _nodes(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a `_target_`, at any depth, with its key."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, value
        for name, one in value.items():
            yield from _nodes(one, f"{key}.{name}")
    elif isinstance(value, list | tuple | set):
        for index, one in enumerate(value):
            yield from _nodes(one, f"{key}[{index}]")


def _arguments(node: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The arguments of a node by name.

    Raises:
        TypeError: if the class does not accept these arguments.
    """
    named = {key: value for key, value in node.items() if key not in (*HYDRAS, "repeat", "grows")}
    positional = node.get("_args_", [])
    if not positional:
        return named
    bound = inspect.signature(kind).bind_partial(*positional, **named)
    return bound.arguments | bound.kwargs


def _check_arguments(key: str, node: Mapping[str, Any], kind: type) -> None:
    odd_one = next((name for name in node if not isinstance(name, str)), None)
    if odd_one is not None:
        raise ConfigError(Problem(key, f"has an argument {odd_one!r}, which is no name"))
    try:
        arguments = _arguments(node, kind)
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem(key, f"cannot be built ({error})")) from error
    if "device" in arguments:  # it would be allocated there before its size is compared with the weights
        raise ConfigError(Problem(f"{key}.device", "is not for a file to choose; remove it"))
    if issubclass(kind, nn.RNNBase) and node.get("_args_"):
        raise ConfigError(Problem(f"{key}._args_", "must be given by their names"))


def _modules(value: Any, classes: Mapping[str, type]) -> int:
    """Estimate a network's number of modules: its nodes, each multiplied by its repeats and layers."""
    if isinstance(value, list):
        return sum(_modules(one, classes) for one in value)
    if not isinstance(value, Mapping):
        return 0
    inner = 1 + sum(_modules(one, classes) for one in value.values())
    own = _arguments(value, classes[value["_target_"]]) if "_target_" in value else {}
    layers = sum(abs(one) for name, one in own.items() if type(one) is int and "layers" in name)
    return inner * max(1, layers) * max(1, value["repeat"] if type(value.get("repeat")) is int else 1)
