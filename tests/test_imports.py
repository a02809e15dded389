"""The architecture's rules: who imports whom, and who does without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vae_lab"

# Data flows one way: a module imports only from those before it.
ORDER = """config data blocks networks latent vae objective module metrics callbacks results checkpoint experiment
statistics plots report sweep cli""".split()


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vae_lab":
            rest = node.module.partition(".")[2]
            names |= {rest.partition(".")[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vae_lab.")}
    return names & set(ORDER)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_modules_import_only_upwards(path: Path) -> None:
    assert path.stem in ORDER
    before = set(ORDER[: ORDER.index(path.stem)])
    assert imported(path) <= before


@pytest.mark.parametrize("module", ["vae_lab", "vae_lab.config", "vae_lab.results", "vae_lab.report", "vae_lab.cli"])
def test_no_torch_until_it_is_needed(module: str) -> None:
    code = f"import {module}, sys; sys.exit(bool({{'torch', 'lightning', 'matplotlib'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
