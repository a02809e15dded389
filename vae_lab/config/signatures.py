"""The schema of an extension, read from its class's source. The class is not imported: torch would take seconds.

The keys of a section are the keyword-only arguments of `__init__`. Their annotations are the rules (`Count`, `Width`,
`Positive`, `Literal[…]` and the other names in `config.base`), and their defaults are the defaults of the keys. Class
attributes that are literals (`data = "binary"`, `changes_results = True`) can be read too.
"""

import ast
import types
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from vae_lab.config import base, names

_NAMESPACE = {
    name: value
    for module in (base, typing, pydantic)
    for name, value in vars(module).items()
    if not name.startswith("_") and not isinstance(value, types.ModuleType)
}


class Signature(NamedTuple):
    """The keys and attributes found in the source of a class."""

    keys: dict[str, tuple[Any, Any]]
    """Key → annotation, and default or `...`, as pydantic takes them."""
    attributes: dict[str, Any]


@cache
def read(path: Path, name: str) -> Signature:
    """Read the keys and attributes of a class in this file."""
    classes = {
        node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)
    }
    own = classes[name]
    keys: dict[str, tuple[Any, Any]] = {}
    attributes: dict[str, Any] = {}
    for item in own.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            for argument, default in zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True):
                assert argument.annotation is not None, f"{path}: {argument.arg} needs an annotation"
                rule = eval(compile(ast.Expression(argument.annotation), str(path), "eval"), dict(_NAMESPACE))
                keys[argument.arg] = rule, ... if default is None else ast.literal_eval(default)
        elif isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            targets = item.targets if isinstance(item, ast.Assign) else [item.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    try:
                        attributes[target.id] = ast.literal_eval(item.value)
                    except ValueError:  # not a literal
                        continue
    return Signature(keys, attributes)


@cache
def schemas(family: str) -> dict[str, type[base.Section]]:
    """Public name → schema of the section, for each class of a family."""
    found: dict[str, type[base.Section]] = {}
    for name, path in names.files(family).items():
        target = (base.Target, f"vae_lab.{name}")
        keys: dict[str, Any] = {"target": target, **read(path, name).keys}
        found[name] = pydantic.create_model(name, __base__=base.Section, __module__=__name__, **keys)
    return found


def attribute(family: str, target: str, name: str, default: Any = None) -> Any:
    """A class attribute of a vae_lab extension; the default for other classes, or if the class lacks it."""
    path = names.files(family).get(target.removeprefix("vae_lab."))
    if path is None or not target.startswith("vae_lab."):
        return default
    return read(path, target.removeprefix("vae_lab.")).attributes.get(name, default)


def words(family: str, name: str, is_meant: Callable[[Any], bool] = bool) -> list[str]:
    """The choices of a family whose class has this attribute with a value that is meant: the names of their files.

    By default any value but False and those that are empty. A class without the attribute is not asked.
    """
    return [
        path.stem
        for one, path in names.files(family).items()
        if name in (found := read(path, one).attributes) and is_meant(found[name])
    ]


def beta_sets_sigma(target: Any) -> bool:
    """Whether the β of an objective determines the σ of its Gaussian likelihood."""
    return bool(attribute("objective", str(target), "beta_sets_sigma", default=False))


def __getattr__(name: str) -> type[base.Section]:
    """The schema of a public name, so that pickle finds it."""
    for family in names.FAMILIES:
        if name in names.files(family):
            return schemas(family)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
