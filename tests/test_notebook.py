"""The notebook of the guide is its source, executed."""

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "walk.ipynb"


def test_the_notebook_is_its_source_and_was_executed_without_errors() -> None:
    cells = runpy.run_path(str(ROOT / "scripts" / "make_notebook.py"))["cells"]
    made = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]]
    assert found == cells((ROOT / "docs" / "walk.py").read_text(encoding="utf-8")), "make notebook"
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) >= 5
    assert code[-1]["outputs"][0]["data"]["text/plain"] == ["True"]


def test_the_notebook_is_small_and_has_no_paths_of_the_machine_it_ran_on() -> None:
    assert NOTEBOOK.stat().st_size < 400_000
    texts = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr"
            texts += [*output.get("text", []), *output.get("data", {}).get("text/plain", [])]
    assert texts
    assert not [text for text in texts if re.search(r"(^|[\s'\"(])/\w|[A-Z]:\\", text)]
