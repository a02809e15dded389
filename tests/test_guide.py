"""What docs/architectures.md shows works as it stands there."""

import re
from pathlib import Path

import pytest
from conftest import Compose

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
    assert set(rows) == {*config.BLOCKS, "_target_"}
    for word, kind in config.BLOCKS.items():
        own = set(kind.model_fields) - set(config.Styled.model_fields) - {word}
        assert set(re.findall(r"`(\w+)(?:: \w+)?`", rows[word])) >= own, word


def test_the_guide_has_every_variant() -> None:
    table = GUIDE[GUIDE.index("## The variants") : GUIDE.index("## Comparisons")]
    folder = Path(__file__).parents[1] / "conf"
    for name, encoder, decoder in re.findall(r"^\| `(\w+)` \| (✓?) ?\| (✓?) ?\|", table, re.MULTILINE):
        assert (folder / "encoder" / f"{name}.yaml").exists() == bool(encoder), name
        assert (folder / "decoder" / f"{name}.yaml").exists() == bool(decoder), name
    assert len(re.findall(r"^\| `", table, re.MULTILINE)) == len(
        {path.stem for side in ("encoder", "decoder") for path in (folder / side).glob("*.yaml")}
    )
