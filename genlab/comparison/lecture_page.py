"""The page of the lectures: one HTML file that contains every picture and fetches nothing."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from genlab.comparison.charts import draw_formula
from genlab.comparison.lecture_figures import (
    FigureRecord,
    LectureFigure,
    figure_state,
    format_command,
    read_figure_record,
    read_topics,
)
from genlab.console import describe_duration
from genlab.fileio import atomic_write
from genlab.tables import format_with_error
from genlab.untrusted.files import MAX_PICTURE_BYTES, read_bytes, read_text

TEMPLATE = Path(__file__).with_name("lecture_page.html")
BETTER_ARROWS = {"lower": "↓", "higher": "↑"}
MIME_TYPES = {".png": "image/png", ".gif": "image/gif"}


def write_lecture_page(figures: Sequence[LectureFigure], folder: Path, out: Path) -> Path:
    """Write the page of figures, and return its path.

    Args:
        figures: in the order of the page; those that are not made are named with their command.
        folder: that contains the folders of the figures in `figures/`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, render_lecture_page(figures, folder).encode("utf-8", "replace"))
    return out


def render_lecture_page(figures: Sequence[LectureFigure], folder: Path) -> str:
    """Return the page of figures as HTML; see `write_lecture_page`."""
    import jinja2

    from genlab import __version__

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    introductions = read_topics()
    topics: list[dict[str, Any]] = []
    for number, (topic, group) in enumerate(groupby(figures, key=lambda f: f.topic), 1):
        values = [
            figure_template_values(figure, folder / "figures" / figure.folder_name, f"{number}.{k}")
            for k, figure in enumerate(group, 1)
        ]
        topics.append(
            {
                "number": number,
                "title": topic,
                "text": introductions.get(topic, ""),
                "figures": values,
            }
        )
    all_values = [value for topic in topics for value in topic["figures"]]
    made = [value for value in all_values if value["state"] == "made"]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        topics=topics,
        num_figures=len(all_values),
        num_made=len(made),
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
    )


def figure_template_values(figure: LectureFigure, folder: Path, number: str) -> dict[str, Any]:
    """Return what the page's template shows of a figure.

    Args:
        folder: of the figure's files.
    """
    record = read_figure_record(folder)
    state, reason = figure_state(figure, record)
    is_made = record is not None and state == "made"
    formula = draw_formula(figure.formula) if figure.formula else None
    return {
        "id": figure.name.replace("_", "-"),
        "name": figure.name,
        "number": number,
        "title": figure.title,
        "paragraphs": split_paragraphs(figure.caption),
        "formula": formula,
        "state": state,
        "reason": reason,
        "pictures": encode_pictures(record, folder) if is_made and record else [],
        "numbers": record.numbers if is_made and record else {},
        "tables": read_comparison_tables(figure, folder) if is_made else [],
        "trainings": record.trainings if is_made and record else planned_trainings(figure),
        "commands": record.commands if is_made and record else planned_commands(figure),
        "duration": describe_record_duration(record) if is_made and record else "",
    }


def split_paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a text, each as one line."""
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def encode_pictures(record: FigureRecord, folder: Path) -> list[dict[str, Any]]:
    """Return the pictures of a figure as data URIs, with their sizes in pixels."""
    from PIL import Image

    pictures = []
    for name in record.pictures:
        path = folder / name
        content = read_bytes(path, MAX_PICTURE_BYTES)
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
        mime = MIME_TYPES[path.suffix]
        pictures.append(
            {
                "source": f"data:{mime};base64,{base64.b64encode(content).decode()}",
                "width": width,
                "height": height,
                "is_animation": path.suffix == ".gif",
                "file": path.name,
            }
        )
    return pictures


def planned_trainings(figure: LectureFigure) -> list[str]:
    """Return the commands that would train the runs of a figure."""
    return [format_command(["train", *words]) for words in figure.all_trainings().values()]


def planned_commands(figure: LectureFigure) -> list[str]:
    """Return the commands that would draw a figure, with <label> in place of its runs."""
    return [f"genlab {command.replace('{', '<').replace('}', '>')}" for command in figure.commands]


def describe_record_duration(record: FigureRecord) -> str:
    """Return how long a figure took, in words."""
    drawing = f"drawing {describe_duration(record.drawing_s)}"
    if not record.trainings:
        return drawing
    return f"training {describe_duration(record.training_s)}, {drawing}"


# --- tables of comparisons ------------------------------------------------------------------------


def read_comparison_tables(figure: LectureFigure, folder: Path) -> list[dict[str, Any]]:
    """Return the numbers of the comparisons among a figure's commands, one table each."""
    tables = []
    for number in range(1, len(figure.commands) + 1):
        path = folder / str(number) / "compare.csv"
        if path.exists():
            tables.append(make_comparison_table(list(csv.DictReader(io.StringIO(read_text(path))))))
    return tables


def make_comparison_table(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Return the rows of a compare.csv as a table with a column for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    by_measure: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        arrow = BETTER_ARROWS.get(row["better"], "")
        name = " ".join(filter(None, [row["name"], row["unit"] and f"[{row['unit']}]", arrow]))
        by_measure.setdefault(name, {})[row["model"]] = row
    return {
        "models": models,
        "rows": [
            {"name": name, "cells": [comparison_cell(cells.get(model)) for model in models]}
            for name, cells in by_measure.items()
        ],
    }


def comparison_cell(row: dict[str, str] | None) -> dict[str, Any]:
    """Return the text of a number of a comparison, and whether it is the best."""
    if row is None or not row["value"]:
        return {"text": "·", "is_best": False}
    spread = float(row["spread"]) if row["spread"] else None
    is_best = row["best"].lower() in ("true", "1", "yes")
    return {"text": format_with_error(float(row["value"]), spread), "is_best": is_best}
