"""The architecture's rules: who imports whom, and who does without torch."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import shipped

PACKAGE = Path(__file__).parents[1] / "vae_lab"
SHIPPED = shipped(PACKAGE)
MODULES = [path for path in SHIPPED if path.suffix == ".py"]

# The rooms, each of which imports only from itself and those before it; `compat` serves all.
ROOMS = [
    "compat", "config", "data", "results", "model", "objectives", "study", "evaluation", "trained", "training",
    "report", "search", "sweep", "explore", "cli", "benchmark",
]  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative imports hide from this test"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vae_lab":
            rest = node.module.partition(".")[2]
            names |= {rest.partition(".")[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vae_lab.")}
    return names - {"__version__"}


def test_the_package_is_its_rooms_and_nothing_else() -> None:
    beside = {"__init__.py", "compat.py", "py.typed", "assets", "__pycache__"}
    found = {path.relative_to(PACKAGE).parts[0] for path in SHIPPED} - beside
    assert found <= {*ROOMS}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_from_rooms_above(path: Path) -> None:
    if path == PACKAGE / "__init__.py":  # what it offers it imports when asked, as the next test sees
        return
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert imported(path) <= {*ROOMS[: ROOMS.index(room) + 1]}


@pytest.mark.parametrize("module", ["vae_lab", "vae_lab.config", "vae_lab.results", "vae_lab.sweep", "vae_lab.cli"])
def test_nothing_that_takes_long_is_imported_until_it_is_needed(module: str) -> None:
    slow = {"torch", "lightning", "matplotlib", "pandas", "scipy", "optuna"}
    code = f"import {module}, sys; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_report_needs_no_torch() -> None:
    code = "import vae_lab.report, sys; sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_folder_of_the_package_is_installed() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in MODULES}
    assert {*project["tool"]["setuptools"]["packages"]} == folders | {"vae_lab.conf"}
