"""Execute the notebook of the guide anew, from its source: `python scripts/make_notebook.py`, or `make notebook`.

docs/walk.py → docs/walk.ipynb; it needs the runs in outputs/walk, which `make notebook` trains.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

SOURCE = Path(__file__).resolve().parents[1] / "docs" / "walk.py"


def cells(source: str) -> list[tuple[str, str]]:
    """The cells of a source in percent format: the kind (markdown or code) and the text."""
    found = []
    for kind, text in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", source, re.MULTILINE | re.DOTALL):
        if kind:
            found.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", text.strip()))
    return found


def notebook(source: str) -> nbformat.NotebookNode:
    """The notebook of a source, not executed; deterministic."""
    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, (kind, text) in enumerate(cells(source)):
        cell = nbformat.v4.new_markdown_cell(text) if kind == "markdown" else nbformat.v4.new_code_cell(text)
        cell["id"] = f"cell-{number}"
        made.cells.append(cell)
    return made


def main() -> None:
    """Execute the source in its folder, as Jupyter would, and write the notebook."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="the cells (default: those of the guide)")
    source = parser.parse_args().source
    if not (SOURCE.parents[1] / "outputs" / "walk").is_dir():
        parser.error("there are no runs in outputs/walk; make notebook trains them")
    made = notebook(source.read_text(encoding="utf-8"))
    NotebookClient(
        made, timeout=300, resources={"metadata": {"path": str(source.parent)}}, record_timing=False
    ).execute()
    target = source.with_suffix(".ipynb")
    nbformat.validate(made)
    nbformat.write(made, target)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
