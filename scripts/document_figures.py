"""Write the catalogue of figures into docs/numbers.md: `python scripts/document_figures.py`."""

from pathlib import Path

from vae_lab.results.figures import CATALOGUE, OF_TEST

DOCUMENT = Path(__file__).parents[1] / "docs" / "numbers.md"
BEGIN, END = "<!-- figures: written by scripts/document_figures.py -->", "<!-- end of figures -->"


def table() -> str:
    """The catalogue in Markdown, without the terms of the objective."""
    lines = ["| figure | heading | better | `metrics` key | meaning |", "|---|---|---|---|---|"]
    for row in CATALOGUE.values():
        family, _, name = row.name.partition(".")
        if family in ("train", "val") or (family == "test" and name not in OF_TEST):
            continue
        switch = f"`{row.switch}`" if row.switch else "always"
        lines.append(f"| `{row.name}` | {row.label} | {row.better or '–'} | {switch} | {row.meaning} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table between its two markers."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
