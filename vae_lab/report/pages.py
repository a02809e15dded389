"""The files of a report."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from vae_lab import results
from vae_lab.config import likelihood_variance, signatures
from vae_lab.config.text import markdown, spreadsheet_cell, visible
from vae_lab.report import findings, searches
from vae_lab.report.searches import Search
from vae_lab.report.tables import ranked, sentence_list, tables
from vae_lab.results import figures
from vae_lab.results.reading import UnreadableError
from vae_lab.study import plots
from vae_lab.study.beyond_images import beyond_images, measured_per_image
from vae_lab.study.gather import FLOOR, SIDES, VARY, Study, gather, sources_of
from vae_lab.study.rate_distortion import rate_distortion
from vae_lab.study.statistics import MOST_CELLS, Comparison, analyse

# Figures of an earlier report, which are removed from the default folder only.
FIGURES = (
    "comparison",
    "predictions",
    "samples",
    "cost",
    "rate_distortion",
    "heatmap",
    "by_*",
    "search_*",
    "*_history",
    "*_predictions",
)


class Picture(NamedTuple):
    """A figure on a page."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Report:
    """The content of a report."""

    study: Study
    statistics: Mapping[str, Comparison]
    findings: Sequence[str]
    searches: Sequence[Search] = ()
    notes: Sequence[str] = ()
    """Problems with reading a search."""


def prepare(folders: Sequence[Path]) -> Report:
    """Read the runs under these folders (of sweeps, cells or runs) and compare them.

    Raises:
        StudyError: if a folder does not exist, or there is no run under them.
    """
    study = gather(folders)
    statistics = analyse(study) if study.compared else {}
    searched, notes = searches.searches(study)
    found = [sentence for one in searched for sentence in searches.sentences(one)]
    return Report(study, statistics, [*found, *findings.findings(study, statistics)], searched, notes)


def write(report: Report, out: Path | None = None, *, all_pictures: bool = False) -> Path:
    """Write the files of a report and return their folder.

    Args:
        report: the result of `prepare`.
        out: the folder of the files; by default `report/` in the given folder, or for several folders in
            `<one>+<other>` beside them.
        all_pictures: draw figures for every cell, not only for the first and the eleven best.

    Raises:
        OSError: if they cannot be written.
    """
    study, statistics = report.study, report.statistics
    folder = place(study.folders) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    pictured = study.cells if all_pictures else _pictured(study, statistics)
    if out is None:
        for stale in (path for name in FIGURES for kind in ("png", "svg") for path in folder.glob(f"{name}.{kind}")):
            stale.unlink()
    pictures, notes = [], [*study.notes, *report.notes, *_left_out(study, statistics, pictured)]
    of_searches = searches.drawings(report.searches)
    for draw in (*of_searches, *plots.drawings(study, statistics, pictured, is_grid=not report.searches)):
        try:
            drawing = draw()
            png, svg = plots.render(drawing) if drawing else (b"", "")
        except Exception as error:  # a figure that fails must not stop the report
            notes.append(f"A figure could not be drawn ({type(error).__name__}: {error}).")
            continue
        if drawing:
            results.write_bytes(folder / f"{drawing.name}.png", png)
            results.write_text(folder / f"{drawing.name}.svg", svg)
            pictures.append(Picture(drawing.name, drawing.caption, svg))
    results.write_text(folder / "results.csv", _csv(study.table))
    results.write_text(folder / "statistics.json", _json(study, statistics))
    page = {
        "title": " and ".join(study.sweeps) or "report",
        "findings": report.findings,
        "tables": [*searches.tables(report.searches), *tables(study, statistics)],
        "pictures": pictures,
        "holes": study.holes,
        "told": (
            ("symptoms", "What is wrong with the models", study.symptoms),
            ("notes", "What cannot be compared", notes),
        ),
        "facts": list(facts(study)),
        "units": "; ".join(_units(study)),
        "version": version("vae-lab"),
    }
    for name, environment in (("report.md", _markdown()), ("report.html", _html())):
        results.write_text(folder / name, environment.get_template(f"{name}.j2").render(page))
    return folder


def place(folders: Sequence[Path]) -> Path:
    """The default folder of the report of these folders.

    Raises:
        OSError: if it is a link: a stranger's would lead anywhere.
    """
    whole = [folder.absolute() for folder in folders]
    name = plots.file_name("+".join(folder.name for folder in whole))
    folder = (whole[0] if len(whole) == 1 else whole[0].parent / name) / "report"
    if folder.is_symlink():
        raise UnreadableError(folder, "is a link: remove it, or name a folder by --out")
    return folder


def _pictured(study: Study, statistics: Mapping[str, Comparison]) -> Sequence[str]:
    """All cells; if there are many, the first and those with the lowest validation total."""
    if len(study.cells) <= MOST_CELLS or "val.total" not in statistics:
        return study.cells[:MOST_CELLS]
    chosen = dict.fromkeys([study.cells[0], *ranked("val.total", statistics["val.total"])])
    best = list(chosen)[:MOST_CELLS]
    return [cell for cell in study.cells if cell in best]


def _csv(table: pd.DataFrame) -> str:
    # Without this, integers in columns with missing values would be written as 3.0.
    return str(table.map(spreadsheet_cell).convert_dtypes().to_csv(index=False, lineterminator="\n"))


def _json(study: Study, statistics: Mapping[str, Comparison]) -> str:
    # One line per metric: json is slow with an indent, and a search of a thousand cells has many megabytes.
    metrics = (
        f"{json.dumps(name)}: {json.dumps(found.container(), allow_nan=False)}" for name, found in statistics.items()
    )
    curves = rate_distortion(study)
    images = {name: found for name in measured_per_image(study) if (found := beyond_images(study, name))}
    further = {
        "record": study.record,
        "rate_distortion": None if curves is None else curves.container(),
        "beyond_test_images": {name: found.container() for name, found in images.items()},
    }
    rest = json.dumps(further, allow_nan=False).removeprefix("{")
    return '{"schema": 1, "metrics": {\n' + ",\n".join(metrics) + f"\n}}, {rest}\n"


def _left_out(study: Study, statistics: Mapping[str, Comparison], pictured: Sequence[str]) -> Iterator[str]:
    effects = statistics[study.record].effects if study.record in statistics else []
    if study.factors and not any(effect.effect is not None for effect in effects):
        yield "Effects of the factors cannot be had: the runs do not make a complete grid under the same conditions."
    if len(pictured) < len(study.cells):
        yield (
            f"Pictures are of {len(pictured)} of the {len(study.cells)} cells, the first and those with the lowest "
            f"validation total; vae-lab report {' '.join(map(str, study.folders))} --all-pictures draws the others too."
        )


def facts(study: Study) -> Iterator[tuple[str, str]]:
    """The settings of the runs, and the machine."""
    runs, finished = len(study.records), sum(record.result.finished for record in study.records)
    yield "Runs", f"{finished} finished" + (f" of {runs}" if runs > finished else "") + f", {len(study.cells)} cells"
    varying = dict.fromkeys(
        ", ".join(sources_of(condition[VARY])) for condition in study.conditions.values() if VARY in condition
    )
    changing = f", which change {'; or '.join(varying)}" if varying else ""
    yield "Seeds", (", ".join(map(str, study.seeds)) or "none") + changing
    settings = {
        "Images": ("data.dataset",),
        "Images for training, validation, test": ("data.num_train", "data.num_val", "data.num_test"),
        "Batch size": ("data.batch_size",),
        "Epochs": ("trainer.max_epochs",),
        "Latent dimensions": ("latent.dim",),
        "Objective": ("objective._target_",),
        "β": ("objective.beta",),
        "Posterior, prior, likelihood": ("posterior._target_", "prior._target_", "likelihood._target_"),
        "Optimiser": ("optimizer._target_", "optimizer.lr"),
    }
    for name, keys in settings.items():
        values = dict.fromkeys(
            ", ".join(_value(record.config[key]) for key in keys)
            for record in study.compared
            if all(key in record.config for key in keys)
        )
        if values:
            yield name, " or ".join(list(values)[:6]) + (" …" if len(values) > 6 else "")
    deviations = dict.fromkeys(f"{sigma:.4g}" for record in study.compared if (sigma := _sigma(record.config)))
    if deviations:
        yield "σ of the Gaussian decoder that β stands for", " or ".join(deviations) + " a pixel"
    floors = dict.fromkeys(f"{floor:.2f}" for floor in study.values(FLOOR).stack())
    if floors:
        yield "Fréchet distance of as many real images", " or ".join(floors)
    matches = dict.fromkeys(_matched(record.result.model.match) for record in study.compared)
    if any(matches):
        yield "Matched", " or ".join(match or "some cells not" for match in matches)
    if study.hardware:
        yield "Hardware", "; ".join(study.hardware)
    environments = [record.result.environment for record in study.compared]
    software = dict.fromkeys(
        f"Python {one.python}, torch {one.torch}, lightning {one.lightning}" for one in environments
    )
    if software:
        yield "Software", "; ".join(software)
    commits = dict.fromkeys(one.commit for one in environments if one.commit)
    if commits:
        yield "Commit", ", ".join(commits)


def _units(study: Study) -> Iterator[str]:
    """The units of each objective's terms."""
    found: dict[str, None] = {}
    for record in study.compared:
        name = str(record.config.get("objective._target_", "the objective")).rpartition(".")[2]
        by_unit: dict[str, list[str]] = {}
        for term in figures.terms_first(record.result.terms):
            by_unit.setdefault(record.result.terms[term], []).append("KL" if term == "kl" else term)
        terms_with_units = ", ".join(f"{sentence_list(terms)} in {unit}" for unit, terms in by_unit.items())
        exact = "" if record.result.divergence != "estimated" else "; the KL divergence is estimated by one sample"
        found[f"{name}: {terms_with_units}{exact}"] = None
    yield from found


def _matched(match: Mapping[str, Any] | None) -> str:
    """How the widths of each half were scaled to match a cost."""
    if not match:
        return ""
    halves = [f"{side} to {match.get(side)}" for side in SIDES if match.get(f"{side}_ratio") is not None]
    return f"widths scaled by {match.get('cost')}, {' and '.join(halves)}" if halves else ""


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value.rpartition(".")[2]  # Adam from torch.optim.Adam
    return f"{value:,}" if isinstance(value, int) else str(value)


def _sigma(config: Mapping[str, Any]) -> float | None:
    """σ of the Gaussian likelihood for which `total` of `mse_kl` is the negative ELBO up to a constant."""
    if not signatures.beta_sets_sigma(config.get("objective._target_")):
        return None
    if config.get("objective.sigma") is not None:
        return float(config["objective.sigma"])
    try:
        shape = [config[f"data.image_shape[{axis}]"] for axis in range(3)]
        return float(likelihood_variance(config["objective.beta"], shape, config["latent.dim"]) ** 0.5)
    except (KeyError, TypeError, ZeroDivisionError):
        return None


# --- Pages -------------------------------------------------------------------------------------------------


def _html() -> jinja2.Environment:
    environment = _environment(autoescape=True, finalize=lambda value: visible(value) if type(value) is str else value)
    environment.filters |= {"inline": _inline, "code": _code}
    return environment


def _markdown() -> jinja2.Environment:
    return _environment(finalize=lambda value: value if isinstance(value, Markup) else markdown(str(value)))


def _environment(**options: Any) -> jinja2.Environment:
    """What is inserted in a template is escaped, because it may be a stranger's."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("vae_lab.report", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )


def _inline(picture: Picture, number: int) -> Markup:
    """A figure's SVG as part of a page: in the page's colours, with unique ids."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(plots.INK, "currentColor").replace(plots.PAPER, "none")
    svg = re.sub(r'\bid="', f'id="f{number}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>f{number}-", svg)
    size = re.search(r'width="([\d.]+)pt"', svg)
    width = f' style="max-width: {float(size[1]) * 4 / 3:.0f}px"' if size else ""
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    label = Markup.escape(visible(picture.caption))
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"{width}', 1))


def _code(text: str) -> Markup:
    """A sentence in which text between backticks is code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(Markup.escape(visible(text)))))
