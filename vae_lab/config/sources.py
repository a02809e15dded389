"""Digests of the user's own code: the source that a `_target_` runs, without importing it.

A digest covers the class or function, whatever it refers to in its module and in the user's other modules, and the
statements that run on import. It ignores comments, docstrings and formatting, and what the target does not use.
"""

import ast
import hashlib
import importlib.util
import site
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Use = tuple[str, str | None]
"""A module and a name in it; None for all of it, an empty name for what runs on import."""

HARMLESS = (
    "cache", "contextmanager", "dataclass", "final", "inference_mode", "lru_cache", "no_grad", "overload", "override",
    "runtime_checkable", "script", "total_ordering", "wraps",
)  # fmt: skip
"""Decorators that change only what they decorate. Any other one may register it, as torch's `register_kl` does."""


@dataclass
class Source:
    """The parsed source of one of the user's modules."""

    name: str
    is_package: bool
    always: list[tuple[int, ast.stmt]] = field(default_factory=list)
    """What runs on import whatever is used, with its position in the file."""
    named: dict[str, list[tuple[int, ast.stmt]]] = field(default_factory=dict)
    """Name → the statements that define it, which count only if it is used."""
    bound: set[str] = field(default_factory=set)
    """The names that those in `always` define."""
    imported: dict[str, Use] = field(default_factory=dict)
    """Name → what it was imported from."""
    modules: list[Use] = field(default_factory=list)
    """The modules that are imported on import."""
    starred: list[str] = field(default_factory=list)
    """The modules from which all names are imported."""


def digest_of(target: str) -> str | None:
    """The digest of the user's code behind a dotted name; None for installed code, or code without readable source."""
    _top.cache_clear()
    module, name = _split(target)
    if module is None:
        return None
    try:
        reached = _reached(module, name)
        text = "\n".join(f"{file} {_dumped(statement)}" for file, statement in reached)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _reached(module: str, name: str | None) -> list[tuple[str, ast.stmt]]:
    """Every statement on which a name of a module depends, with its module, in order."""
    found: dict[tuple[str, int], ast.stmt] = {}
    seen: set[Use] = set()
    todo: list[Use] = [(module, name)]

    def take(source: Source, statements: list[tuple[int, ast.stmt]]) -> None:
        for position, statement in statements:
            if (source.name, position) not in found:
                found[source.name, position] = statement
                todo.extend(_references(source, statement))

    while todo:
        one = todo.pop()
        if one in seen:
            continue
        source = _source(one[0])
        if source is None:
            seen.add(one)
            continue
        if (source.name, "") not in seen:
            take(source, source.always)
            todo += source.modules
            todo += [(parent, "")] if (parent := source.name.rpartition(".")[0]) else []
        seen |= {one, (source.name, "")}
        wanted = one[1]
        if wanted is None or not (wanted == "" or wanted in source.bound or wanted in source.named):
            submodule = f"{source.name}.{wanted}"
            if wanted in source.imported:
                todo.append(source.imported[wanted])
            elif wanted is not None and _file(submodule):
                todo.append((submodule, None))
            else:  # all of it: the module itself is used, or has the name by other means
                for statements in source.named.values():
                    take(source, statements)
                todo += [*source.imported.values(), *((other, None) for other in source.starred)]
        elif wanted in source.named:
            take(source, source.named[wanted])
    return [(file, statement) for (file, _), statement in sorted(found.items(), key=lambda one: one[0])]


def _references(source: Source, statement: ast.stmt) -> Iterator[Use]:
    """The names that a statement uses, and the modules that it imports."""
    attributes = {
        id(node.value): (node.value.id, node.attr)
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for node in ast.walk(statement):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(source, node).values()
        elif isinstance(node, ast.Name):
            if node.id in source.named:
                yield source.name, node.id
            elif node.id in source.imported:
                module, name = source.imported[node.id]
                yield module, attributes.get(id(node), (None, None))[1] if name is None else name
            else:  # perhaps one of these, perhaps a local name
                yield from ((other, node.id) for other in source.starred if _defines(other, node.id))


def _defines(module: str, name: str) -> bool:
    source = _source(module)
    return source is not None and (name in source.named or name in source.imported)


def _imports(source: Source, node: ast.Import | ast.ImportFrom) -> dict[str, Use]:
    """The names that an import statement binds, as in `Source.imported`."""
    if isinstance(node, ast.Import):
        return {one.asname or one.name.partition(".")[0]: (one.name, None) for one in node.names}
    module = _absolute(source, node)
    names = {one.asname or one.name: one.name for one in node.names if one.name != "*"}
    return {
        bound: (f"{module}.{name}", None) if _file(f"{module}.{name}") else (module, name)
        for bound, name in names.items()
    }


def _absolute(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.name.split(".")[: None if source.is_package else -1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _source(module: str) -> Source | None:
    """The source of a module of the user's; None for installed ones."""
    path = _file(module)
    if path is None or path.suffix != ".py":
        return None
    status = path.stat()
    return _parsed(module, path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _parsed(name: str, path: Path, *version: int) -> Source:
    source = Source(name, path.name == "__init__.py")
    for position, statement in enumerate(ast.parse(path.read_bytes()).body):
        defined = _defined_by(statement)
        if isinstance(statement, ast.Import):
            source.imported |= _imports(source, statement)
            # `import a.b` binds a, and what is used of a.b is not seen.
            source.modules += [
                (one.name, None if "." in one.name and not one.asname else "") for one in statement.names
            ]
        elif isinstance(statement, ast.ImportFrom):
            source.imported |= _imports(source, statement)
            module = _absolute(source, statement)
            source.modules += [(module, ""), *((f"{module}.{one.name}", "") for one in statement.names)]
            source.starred += [module for one in statement.names if one.name == "*"]
        elif defined:
            for one in defined:
                source.named.setdefault(one, []).append((position, statement))
        elif not _is_docstring(statement):
            source.always.append((position, statement))
            source.bound |= {node.name for node in ast.walk(statement) if isinstance(node, Definition)}
            source.bound |= {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return source


def _defined_by(statement: ast.stmt) -> list[str]:
    """The names that a statement defines, if it does nothing else."""
    if isinstance(statement, Definition):
        decorators = [one.func if isinstance(one, ast.Call) else one for one in statement.decorator_list]
        harmless = all(ast.unparse(one).rpartition(".")[2] in HARMLESS for one in decorators)
        return [statement.name] if harmless else []
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if all(isinstance(target, ast.Name) for target in targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []


def _split(target: str) -> tuple[str | None, str | None]:
    """The longest part of a dotted name that is a module of the user's, and the name after it."""
    parts = target.split(".")
    for count in range(len(parts), 0, -1):
        if _file(".".join(parts[:count])) is not None:
            return ".".join(parts[:count]), parts[count] if count < len(parts) else None
    return None, None


def _file(module: str) -> Path | None:
    """The file of a module of the user's; None for other modules."""
    top, *rest = module.split(".")
    path, folders = _top(top)
    for part in rest:
        places = [place for folder in folders for place in (folder / part / "__init__.py", folder / f"{part}.py")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:  # a package may do without an __init__.py
            folders = tuple(folder / part for folder in folders if (folder / part).is_dir())
        else:
            folders = (path.parent,) if path.name == "__init__.py" else ()
    return path


@cache
def _top(name: str) -> tuple[Path | None, tuple[Path, ...]]:
    """The file and the folders of a module or package that is neither installed nor Python's nor ours."""
    nothing: tuple[None, tuple[Path, ...]] = None, ()
    if name in ("", "vae_lab"):
        return nothing
    try:
        spec = importlib.util.find_spec(name)  # imports nothing, since the name has no dots
    except (ImportError, ValueError):  # ValueError: `__main__` has none
        return nothing
    if spec is None:
        return nothing
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    path = Path(spec.origin) if spec.has_location and spec.origin else None
    places = [*folders, *([path] if path else [])]
    if any(place.resolve().is_relative_to(folder) for place in places for folder in _installed()):
        return nothing
    return path, tuple(folders)


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of Python's own and of installed packages."""
    known = sysconfig.get_paths()
    folders = [known[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({Path(folder).resolve() for folder in (*folders, *site.getsitepackages(), site.getusersitepackages())})


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _dumped(node: object) -> str:
    """A syntax tree as text. `ast.dump` differs between versions of Python; this leaves out whatever is empty."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return f"{type(node).__name__}({', '.join(f'{name}={_dumped(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{', '.join(_dumped(one) for one in node if not (isinstance(one, ast.stmt) and _is_docstring(one)))}]"
    return repr(node)
