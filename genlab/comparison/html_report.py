"""The page of a comparison: one HTML file that contains every picture and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import shlex
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.comparison import charts
from genlab.comparison.run_records import RunRecord
from genlab.comparison.table import (
    Cell,
    Comparison,
    Measure,
    format_conditions,
    make_comparison,
)
from genlab.fileio import atomic_write
from genlab.metrics.sections import SAMPLES_SECTION, SECTIONS, section_of_metric
from genlab.tables import format_standard_error, format_to_error_digits
from genlab.untrusted.text import to_printable_text
from genlab.viz.picture import Picture
from genlab.viz.sheets import read_picture_from_sheet_png

if TYPE_CHECKING:
    import numpy as np

TEMPLATE = Path(__file__).with_name("page.html")

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
    "filters": (
        "Filters",
        "The weights of hidden units, the largest first; each is scaled from black (negative) to "
        "white (positive).",
    ),
    "chains": (
        "Chains",
        "Gibbs chains, one per row: a held-out item, then the state of the chain after 1, 2, 5, "
        "10, 20, 50, 100, 200, 500 and 1,000 steps.",
    ),
    "translations": (
        "Translations",
        "Held-out sources above, their outputs below, then the truth if it is known.",
    ),
    "vlb_terms": (
        "Terms of the bound",
        "L_0, L_{t−1} and L_T of held-out items over the noise levels, and their sum.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Held-out items above, their reconstructions below.",
    ),
}
MAX_TITLE_LABELS = 6
MAX_CHARTS_ACROSS = 4
# Widths in pixels.
PAGE_WIDTH = 1336  # of the content in a window of 1,400
CARD_PADDING, CARD_GAP = 26, 19
MIN_GRID_WIDTH, MAX_GRID_WIDTH = 280, 600  # of the images of a sheet, enlarged
MIN_PLOT_WIDTH = 560  # so that its legend is readable
MIN_MIXED_WIDTH = 400  # of plots among grids
MAX_UNMARKED_GRID = 400  # larger pictures of old runs may be plots, which are not enlarged


@dataclass(frozen=True)
class PageFigure:
    """A figure of a comparison, which is also a file `<name>.png`."""

    name: str
    caption: str
    picture: Picture


def write_page_from_entries(
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
    return write_comparison_page(make_comparison(runs), out, title=title, text=text)


def write_comparison_page(
    comparison: Comparison,
    out: Path,
    *,
    title: str = "",
    text: str = "",
    formula: str = "",
    figures: Sequence[PageFigure] = (),
) -> Path:
    """Write the page of a comparison and return its path."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    page = render_html_page(comparison, title=title, text=text, formula=formula, figures=figures)
    atomic_write(out, page.encode("utf-8", "replace"))
    return out


def render_html_page(
    comparison: Comparison,
    *,
    title: str = "",
    text: str = "",
    formula: str = "",
    figures: Sequence[PageFigure] = (),
) -> str:
    """Return the page of a comparison as HTML.

    Args:
        formula: in TeX as matplotlib draws it, without dollar signs.
        figures: shown before all else.
    """
    import jinja2

    from genlab import __version__

    source = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    columns = comparison.columns
    datasets = dict.fromkeys(str(c.runs[0].metadata.get("dataset")) for c in columns)
    differences = comparison.config_differences()
    losses = [charts.plot_loss_curves(column) for column in columns]
    evaluations = charts.plot_evaluation_curves(columns)
    return environment.from_string(source).render(
        title=to_printable_text(title or default_page_title(comparison, ", ".join(datasets))),
        paragraphs=[" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()],
        script_hash=script_csp_hash(source),
        formula=charts.draw_formula(formula) if formula else None,
        figures=[page_figure_values(figure) for figure in figures],
        models=[
            {"label": column.label, "title": column.title, "color": j % len(charts.COLORS)}
            for j, column in enumerate(columns)
        ],
        colors=charts.COLORS,
        galleries=make_picture_galleries(comparison),
        tables=make_section_tables(comparison),
        conditions=[
            (m.label, shared_conditions_of_row(m, comparison.row_cells(i)))
            for i, m in enumerate(comparison.measures)
        ],
        blank_reasons=comparison.blank_reasons(),
        training_notes=comparison.training_notes(),
        losses=losses,
        across_losses=balanced_row_length(sum(map(bool, losses)), MAX_CHARTS_ACROSS),
        evaluations=evaluations,
        across_evaluations=balanced_row_length(len(evaluations), MAX_CHARTS_ACROSS),
        scatter=charts.plot_quality_against_cost(comparison),
        common_options={key: v for key, v in differences.items() if None not in v},
        other_options={
            key: ["" if value is None else value for value in values]
            for key, values in differences.items()
            if None in values
        },
        runs=[run_template_values(c.label, run) for c in columns for run in c.runs],
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
    )


def default_page_title(comparison: Comparison, datasets: str) -> str:
    """Return a title that names the models and their data."""
    labels = [column.label for column in comparison.columns]
    others = " and others" if len(labels) > MAX_TITLE_LABELS else ""
    return f"{', '.join(labels[:MAX_TITLE_LABELS])}{others} on {datasets}"


def script_csp_hash(source: str) -> str:
    """Return the hash by which the page's security policy allows its own script."""
    script = source.partition("<script>")[2].partition("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# --- pictures -------------------------------------------------------------------------------------


def make_picture_galleries(comparison: Comparison) -> list[dict[str, Any]]:
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
                figures.append(make_figure_entry(column.title, found[key], color=color))
            else:
                missing.append(column.label)
        if key == "samples":
            heading, text = "Samples", "Samples of each model beside real data, not selected."
            figures = [*make_real_data_figures(comparison, pictures), *figures]
        elif not figures:
            continue
        else:
            default = to_printable_text(key).replace("_", " ").capitalize()
            heading, text = PICTURES.get(key, (default, ""))
        galleries.append(
            {
                "heading": heading,
                "text": text,
                "figures": figures,
                "missing": missing,
                **choose_card_width_and_columns(figures),
            }
        )
    return galleries


def make_real_data_figures(
    comparison: Comparison, pictures: list[dict[str, bytes]]
) -> list[dict[str, Any]]:
    """Return pictures of the real data, one for each preprocessing among the models."""
    figures: dict[str, dict[str, Any]] = {}
    for column, found in zip(comparison.columns, pictures, strict=True):
        data = column.runs[0].data_conditions({"metric": "likelihood", "unit": ""})
        words = (data.get("data"), data.get("shape"), data.get("binarized") and "binarized")
        name = " ".join(filter(None, words))
        if "reals" in found and name not in figures:
            label = to_printable_text(f"real data: {name}")
            figures[name] = make_figure_entry(label, found["reals"], color=None)
    return list(figures.values())


def make_figure_entry(label: str, png: bytes, *, color: int | None) -> dict[str, Any]:
    """Return a picture as the page shows it; real data is without a color.

    The images of a sheet are shown without its names and captions. They are enlarged by whole
    numbers, unlike plots.
    """
    picture = read_picture_from_sheet_png(png)
    if picture is not None:
        png = encode_png(picture.grid_without_names)
    width, height = struct.unpack(">II", png[16:24])
    is_plot = picture.is_plot if picture is not None else width > MAX_UNMARKED_GRID
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return {
        "label": label,
        "source": source,
        "width": width,
        "height": height,
        "color": color,
        "is_plot": is_plot,
    }


def page_figure_values(figure: PageFigure) -> dict[str, Any]:
    """Return a figure of the comparison as the page shows it, without enlarging it."""
    pixels = figure.picture.images[0]
    return {
        "name": figure.name,
        "caption": to_printable_text(figure.caption),
        "note": to_printable_text(figure.picture.note),
        "source": "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode(),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
    }


def encode_png(pixels: np.ndarray) -> bytes:
    """Return pixels (H, W, 3) as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def choose_card_width_and_columns(figures: list[dict[str, Any]]) -> dict[str, int]:
    """Return the smallest width of a card in pixels, and how many are in a row of a wide page."""
    widths = [figure["width"] for figure in figures if not figure["is_plot"]]
    card = MIN_PLOT_WIDTH
    if widths:
        widest = max(widths)
        card = min(MAX_GRID_WIDTH, widest * math.ceil(MIN_GRID_WIDTH / widest))
        if len(widths) < len(figures):
            card = max(card, MIN_MIXED_WIDTH)
    card += CARD_PADDING
    across = balanced_row_length(len(figures), (PAGE_WIDTH + CARD_GAP) // (card + CARD_GAP))
    return {"card": card, "across": across}


def balanced_row_length(n: int, most: int) -> int:
    """Return how many of n cards are in a row of up to `most`, with rows of similar lengths."""
    rows = math.ceil(n / max(1, most)) or 1
    return math.ceil(n / rows) or 1


# --- tables ---------------------------------------------------------------------------------------


def make_section_tables(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the numbers as tables, one for each section, with models down."""
    sections: dict[str, list[int]] = {}
    for i, measure in enumerate(comparison.measures):
        sections.setdefault(section_of_metric(measure.metric), []).append(i)
    tables = []
    for heading in dict.fromkeys([SAMPLES_SECTION, *SECTIONS]):
        rows = sections.get(heading)
        if not rows:
            continue
        measures = [
            {
                "m": comparison.measures[i],
                "real_vs_real": comparison.real_vs_real_text(i),
                "conditions": shared_conditions_of_row(
                    comparison.measures[i], comparison.row_cells(i)
                ),
            }
            for i in rows
        ]
        cells = [
            [cell_template_values(comparison.cells[i, j]) for i in rows]
            for j in range(len(comparison.columns))
        ]
        tables.append({"heading": heading, "measures": measures, "rows": cells})
    return tables


def cell_template_values(cell: Cell) -> dict[str, Any]:
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
        "spread": format_standard_error(cell.spread),
        "value": repr(cell.value) if math.isfinite(cell.value) else "",
        "tag": " ".join(filter(None, (cell.tag, cell.n))),
        "is_best": cell.is_best,
        "seeds": seeds,
        "tip": "; ".join(filter(None, tip)),
    }


def shared_conditions_of_row(measure: Measure, cells: list[Cell]) -> str:
    """Return the conditions that a row's numbers share."""
    shared = format_conditions(dict(measure.conditions))
    return shared or next((cell.conditions for cell in cells if cell.conditions), "")


def run_template_values(label: str, run: RunRecord) -> dict[str, Any]:
    """Return where a column's numbers come from."""
    metadata = run.metadata
    command = metadata.get("command") or []
    if isinstance(command, list):
        command = shlex.join(map(str, command))
    return {
        "label": to_printable_text(label),
        "folder": to_printable_text(run.folder),
        "seed": to_printable_text(run.seed),
        "step": f"{run.step:,}",
        "device": to_printable_text(metadata.get("device", "")),
        "commit": to_printable_text(metadata.get("commit") or "")[:8],
        "command": to_printable_text(command),
    }
