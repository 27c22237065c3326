"""The page of a comparison: one HTML file that contains every picture and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import shlex
import struct
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from genlab.comparison import charts
from genlab.comparison.run_records import EFFICIENCY_METRIC, RunRecord, plain_text
from genlab.comparison.table import (
    Cell,
    Comparison,
    Measure,
    format_conditions,
    format_to_error_digits,
    make_comparison,
)
from genlab.fileio import atomic_write

TEMPLATE = Path(__file__).with_name("page.html")

# The heading of the table that shows a metric; other metrics are in the first table.
SECTIONS = {
    "prdc": "Fidelity and coverage",
    "mode_coverage": "Modes and classes",
    "class_coverage": "Modes and classes",
    "class_accuracy": "Modes and classes",
    "prompt_accuracy": "Modes and classes",
    "cas": "Modes and classes",
    "disentanglement": "Disentanglement",
    "likelihood": "Likelihood",
    "ode_likelihood": "Likelihood",
    "nn_memorization": "Memorization",
    EFFICIENCY_METRIC: "Cost",
}
FIRST_SECTION = "Samples against held-out data"
# A record's pictures: heading and description.
PICTURES = {
    "nearest": (
        "Nearest neighbors",
        "Samples above; below each, the training item nearest to it.",
    ),
    "latent": (
        "Latent space",
        "The codes of held-out items, colored by class if there are classes.",
    ),
    "manifold": ("Manifold", "The decoded points of a grid of codes."),
    "reconstructions": (
        "Reconstructions",
        "Held-out items above, their reconstructions below.",
    ),
}
MAX_TITLE_LABELS = 6


def write_page(
    entries: Sequence[tuple[str, Path, dict[str, Any] | None]],
    out: Path,
    *,
    title: str = "",
    text: str = "",
) -> Path:
    """Write the page that compares entries, and return its path.

    Entries of one label that differ only in the run's seed become one column. One folder may come
    with several records.

    Args:
        entries: label, run folder, and record or None.
        out: the HTML file.
        title: of the page; "" for the models' names.
        text: paragraphs below the title, separated by empty lines.
    """
    runs = [RunRecord(Path(folder), record, label) for label, folder, record in entries]
    return write_report(make_comparison(runs), out, title=title, text=text)


def write_report(comparison: Comparison, out: Path, *, title: str = "", text: str = "") -> Path:
    """Write the page of a comparison and return its path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, render_page(comparison, title=title, text=text).encode("utf-8", "replace"))
    return out


def render_page(comparison: Comparison, *, title: str = "", text: str = "") -> str:
    """Return the page of a comparison as HTML."""
    import jinja2

    from genlab import __version__

    source = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    columns = comparison.columns
    datasets = dict.fromkeys(str(c.runs[0].metadata.get("dataset")) for c in columns)
    differences = comparison.config_differences()
    return environment.from_string(source).render(
        title=plain_text(title or default_title(comparison, ", ".join(datasets))),
        paragraphs=[" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()],
        script_hash=hash_script(source),
        models=[
            {"label": column.label, "title": column.title, "color": j % len(charts.COLORS)}
            for j, column in enumerate(columns)
        ],
        colors=charts.COLORS,
        galleries=make_galleries(comparison),
        tables=make_tables(comparison),
        conditions=[
            (m.label, shared_conditions(m, comparison.row(i)))
            for i, m in enumerate(comparison.measures)
        ],
        blank_reasons=comparison.blank_reasons(),
        training_notes=comparison.training_notes(),
        losses=[charts.plot_losses(column) for column in columns],
        evaluations=charts.plot_evaluations(columns),
        scatter=charts.plot_quality_against_cost(comparison),
        common_options={key: v for key, v in differences.items() if None not in v},
        other_options={
            key: ["" if value is None else value for value in values]
            for key, values in differences.items()
            if None in values
        },
        runs=[describe_run(c.label, run) for c in columns for run in c.runs],
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
    )


def default_title(comparison: Comparison, datasets: str) -> str:
    """Return a title that names the models and their data."""
    labels = [column.label for column in comparison.columns]
    others = " and others" if len(labels) > MAX_TITLE_LABELS else ""
    return f"{', '.join(labels[:MAX_TITLE_LABELS])}{others} on {datasets}"


def hash_script(source: str) -> str:
    """Return the hash by which the page's security policy allows its own script."""
    script = source.partition("<script>")[2].partition("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# --- pictures -------------------------------------------------------------------------------------


def make_galleries(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the pictures by subject: samples beside the real data, then other pictures."""
    pictures = [column.runs[0].pictures for column in comparison.columns]
    recorded = [key for found in pictures for key in found if key != "reals"]
    galleries = []
    for key in dict.fromkeys(["samples", *PICTURES, *recorded]):
        figures: list[dict[str, Any]] = []
        missing = []
        for j, (column, found) in enumerate(zip(comparison.columns, pictures, strict=True)):
            if key in found:
                color = j % len(charts.COLORS)
                figures.append(make_figure(column.title, found[key], color=color))
            else:
                missing.append(column.label)
        if key == "samples":
            heading, text = "Samples", ""
            figures = [*make_real_figures(comparison, pictures), *figures]
        elif not figures:
            continue
        else:
            default = plain_text(key).replace("_", " ").capitalize()
            heading, text = PICTURES.get(key, (default, ""))
        galleries.append({"heading": heading, "text": text, "figures": figures, "missing": missing})
    return galleries


def make_real_figures(
    comparison: Comparison, pictures: list[dict[str, bytes]]
) -> list[dict[str, Any]]:
    """Return pictures of the real data, one for each preprocessing among the models."""
    figures: dict[str, dict[str, Any]] = {}
    for column, found in zip(comparison.columns, pictures, strict=True):
        data = column.runs[0].data_conditions({"metric": "likelihood", "unit": ""})
        words = (data.get("data"), data.get("shape"), data.get("binarized") and "binarized")
        name = " ".join(filter(None, words))
        if "reals" in found and name not in figures:
            label = plain_text(f"real data: {name}")
            figures[name] = make_figure(label, found["reals"], color=None)
    return list(figures.values())


def make_figure(label: str, png: bytes, *, color: int | None) -> dict[str, Any]:
    """Return a picture as the page shows it; real data has no color."""
    width, height = struct.unpack(">II", png[16:24])
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"label": label, "source": source, "width": width, "height": height, "color": color}


# --- tables ---------------------------------------------------------------------------------------


def make_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the numbers as tables, one for each section, with models down."""
    sections: dict[str, list[int]] = {}
    for i, measure in enumerate(comparison.measures):
        sections.setdefault(SECTIONS.get(measure.metric, FIRST_SECTION), []).append(i)
    headings = dict.fromkeys([FIRST_SECTION, *SECTIONS.values()])
    tables = []
    for heading in headings:
        rows = sections.get(heading)
        if not rows:
            continue
        measures = [
            {
                "m": comparison.measures[i],
                "real_vs_real": comparison.real_vs_real_text(i),
                "conditions": shared_conditions(comparison.measures[i], comparison.row(i)),
            }
            for i in rows
        ]
        cells = [
            [describe_cell(comparison.cells[i, j]) for i in rows]
            for j in range(len(comparison.columns))
        ]
        tables.append({"heading": heading, "measures": measures, "rows": cells})
    return tables


def describe_cell(cell: Cell) -> dict[str, Any]:
    """Return a cell as the page shows it."""
    if cell.value is None:
        return {"is_blank": True, "reason": cell.blank_reason}
    spread_kinds = {
        "s.e.": "± standard error",
        "s.d.": f"mean ± standard deviation of {cell.num_seeds} seeds",
    }
    seeds = missing = real_vs_real = ""
    if cell.num_missing_seeds:
        seeds = f"{cell.num_seeds} of {cell.num_seeds + cell.num_missing_seeds} seeds"
        missing = f"{cell.num_missing_seeds} more seeds have no such number"
    if cell.real_vs_real is not None:
        real_vs_real = f"real vs. real {format_to_error_digits(cell.real_vs_real)}"
    spread_kind = spread_kinds.get(cell.spread_kind, "")
    tip = (cell.tag, spread_kind, missing, real_vs_real, cell.conditions)
    return {
        "is_blank": False,
        "text": format_to_error_digits(cell.value, cell.spread),
        "spread": "" if cell.spread is None else format_to_error_digits(cell.spread, cell.spread),
        "value": repr(cell.value) if math.isfinite(cell.value) else "",
        "tag": cell.tag,
        "is_best": cell.is_best,
        "seeds": seeds,
        "tip": "; ".join(filter(None, tip)),
    }


def shared_conditions(measure: Measure, cells: list[Cell]) -> str:
    """Return the conditions that a row's numbers share."""
    shared = format_conditions(dict(measure.conditions))
    return shared or next((cell.conditions for cell in cells if cell.conditions), "")


def describe_run(label: str, run: RunRecord) -> dict[str, Any]:
    """Return where a column's numbers come from."""
    metadata = run.metadata
    command = metadata.get("command") or []
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    return {
        "label": plain_text(label),
        "folder": plain_text(run.folder),
        "seed": plain_text(run.seed),
        "step": f"{run.step:,}",
        "device": plain_text(metadata.get("device", "")),
        "commit": plain_text(metadata.get("commit") or "")[:8],
        "command": plain_text(command),
    }
