"""What docs/architectures.md shows works as it stands there."""

import inspect
import re
from pathlib import Path

import pytest
from conftest import Compose, shipped, shipped_choices

from vae_lab import config
from vae_lab.model import match

GUIDE = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:yaml|python)\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))


@pytest.mark.parametrize("path", [path for path in FILES if path.endswith(".yaml")])
def test_every_file_of_the_guide_can_be_trained(
    run_of: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    _, group, file = path.split("/")
    found = f"hydra.searchpath=[file://{tmp_path}/my_conf]"
    cost = "none" if file == "shuffle.yaml" else "parameters"  # PixelShuffle takes multiples of four only
    settings = run_of(found, f"{group}={file.removesuffix('.yaml')}", f"match={cost}").config
    match.check_fit(settings)
    config.check_targets(settings)


def test_the_guide_has_every_word_with_its_arguments() -> None:
    rows = dict(re.findall(r"^\| `(\w+): [^|]*?\|[^|]*\|(.*)\|$", GUIDE, re.MULTILINE))
    ours = {
        word: kind for word, kind in config.BLOCKS.items() if Path(inspect.getfile(kind)) in shipped(config.PACKAGE)
    }
    assert set(rows) == {*ours, "_target_"}
    for word, kind in ours.items():
        own = set(kind.model_fields) - set(config.Styled.model_fields) - {word}
        assert set(re.findall(r"`(\w+)(?:: \w+)?`", rows[word])) >= own, word


def test_the_guide_has_every_variant() -> None:
    table = GUIDE[GUIDE.index("## The variants") : GUIDE.index("## Comparisons")]
    rows = re.findall(r"^\| `(\w+)` \| (✓?) ?\| (✓?) ?\|", table, re.MULTILINE)
    assert {name for name, encoder, _ in rows if encoder} == {*shipped_choices("encoder")}
    assert {name for name, _, decoder in rows if decoder} == {*shipped_choices("decoder")}


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_files_and_links_that_a_page_names_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`((?:vae_lab|tests|scripts|conf|docs)/[\w/.]+\.(?:py|yaml|md))`", text)
    missing = [name for name in named if not (ROOT / name).exists() and not name.endswith(("/wide.yaml", "/mine.yaml"))]
    linked = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert missing + [link for link in linked if not (page.parent / link).exists()] == []
