"""A comparison as a table in the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shlex
import shutil
import sys

from genlab.comparison.run_records import plain_text
from genlab.comparison.table import Cell, Comparison
from genlab.console import print_table

REAL_VS_REAL = "real vs. real"
TERMINAL_LEGEND = (
    "± standard error; over seeds, standard deviation. * best. · no number. "
    f"{REAL_VS_REAL}: held-out data against other held-out data."
)
MARKDOWN_LEGEND = (
    "± standard error; over seeds, standard deviation. Bold: best. ·: no number. "
    f"{REAL_VS_REAL}: held-out data against other held-out data."
)
LABEL_MARGIN = 24  # columns of a terminal beside the labels: unit, real vs. real, gaps
UNLIMITED_WIDTH = 10**6
CSV_HEADER = [
    "model",
    "metric",
    "name",
    "value",
    "spread",
    "spread_is",
    "seeds",
    "unit",
    "better",
    "tag",
    "real_vs_real",
    "best",
    "conditions",
    "reason",
]


# --- terminal -------------------------------------------------------------------------------------


def print_comparison(comparison: Comparison) -> None:
    """Print the numbers, with models across in as many tables as the terminal's width needs.

    If there are more models than measures, models go down.
    """
    measures, titles = comparison.measures, [column.title for column in comparison.columns]
    labels = [f"{m.label} {m.arrow}".strip() for m in measures]
    real_vs_real = [comparison.real_vs_real_text(i) for i in range(len(measures))]
    text = [[format_cell(cell) for cell in comparison.row(i)] for i in range(len(measures))]
    if not measures:
        print(f"{', '.join(titles)}: none of them was measured")
    elif len(titles) > len(labels):
        rows = [
            [title, *(text[i][j] for i in range(len(labels)))] for j, title in enumerate(titles)
        ]
        rows.append([REAL_VS_REAL, *real_vs_real])
        header = [
            f"{label} [{m.unit}]" if m.unit else label
            for label, m in zip(labels, measures, strict=True)
        ]
        print_table(["model", *header], rows)
    else:
        label_width = max(map(len, labels)) + LABEL_MARGIN
        for columns in split_columns(titles, text, label_width):
            rows = [
                [labels[i], m.unit, *(text[i][j] for j in columns), real_vs_real[i]]
                for i, m in enumerate(measures)
            ]
            print_table(["", "unit", *(titles[j] for j in columns), REAL_VS_REAL], rows)
    for line in format_training_notes(comparison):
        print(line)
    if reasons := format_blank_reasons(comparison):
        print(TERMINAL_LEGEND)
        for line in reasons:
            print(f"  {line}")


def split_columns(titles: list[str], text: list[list[str]], label_width: int) -> list[list[int]]:
    """Return the columns of each table, such that every table fits the terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED_WIDTH
    room = width - label_width
    tables: list[list[int]] = [[]]
    used = 0
    for j, title in enumerate(titles):
        column_width = 2 + max(len(cell) for cell in (title, *(row[j] for row in text)))
        if tables[-1] and used + column_width > room:
            tables.append([])
            used = 0
        tables[-1].append(j)
        used += column_width
    return tables


def format_cell(cell: Cell) -> str:
    """Return a cell as text: 97.94 ± 0.28 bound *."""
    if cell.value is None:
        return "·"
    seeds = ""
    if cell.num_missing_seeds:
        seeds = f"({cell.num_seeds} of {cell.num_seeds + cell.num_missing_seeds} seeds)"
    return " ".join(filter(None, (cell.text(), cell.tag, seeds, "*" if cell.is_best else "")))


def format_training_notes(comparison: Comparison) -> list[str]:
    """Return the notes of training, one line each."""
    return [
        f"{note}: " + "; ".join(f"{label} ({when})" for label, when in columns.items())
        for note, columns in comparison.training_notes().items()
    ]


def format_blank_reasons(comparison: Comparison) -> list[str]:
    """Return why cells are blank, one line for each reason."""
    return [
        f"{reason}: "
        + "; ".join(f"{label} ({', '.join(names)})" for label, names in columns.items())
        for reason, columns in comparison.blank_reasons().items()
    ]


# --- CSV ------------------------------------------------------------------------------------------


def to_csv(comparison: Comparison) -> str:
    """Return one line for each model and measure, with the unrounded numbers of the records.

    A blank has its reason.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for (i, j), cell in comparison.cells.items():
        measure = comparison.measures[i]
        writer.writerow(
            [
                comparison.columns[j].label,
                measure.metric,
                measure.name,
                exact_number(cell.value),
                exact_number(cell.spread),
                cell.spread_kind,
                "" if cell.value is None else cell.num_seeds,
                measure.unit,
                measure.better,
                cell.tag,
                exact_number(cell.real_vs_real),
                int(cell.is_best),
                json.dumps(dict(measure.conditions), ensure_ascii=False),
                cell.blank_reason,
            ]
        )
    return file.getvalue()


def exact_number(value: float | None) -> str:
    """Return a number with all its digits, "" for None."""
    if value is None:
        return ""
    return repr(value) if math.isfinite(value) else str(value)


# --- Markdown -------------------------------------------------------------------------------------


def to_markdown(comparison: Comparison) -> str:
    """Return the table in Markdown, the best of each row in bold, with notes below it."""
    lines = format_markdown_table(comparison)
    notes = [*format_training_notes(comparison), *format_blank_reasons(comparison)]
    lines += ["", MARKDOWN_LEGEND, ""]
    lines += [escape_markdown(f"- {note}") for note in notes]
    lines += ["", "Trained by, at the step in brackets:", ""]
    for column in comparison.columns:
        for run in column.runs:
            words = map(str, run.metadata.get("command") or ())
            command = shlex.join(word for word in words if not word.startswith("out="))
            line = f"- {column.label}: {plain_text(command)} ({run.step:,})"
            lines.append(escape_markdown(line))
    return "\n".join(lines).rstrip() + "\n"


def format_markdown_table(comparison: Comparison) -> list[str]:
    """Return the lines of the table; if there are more models than measures, models go down."""
    header = ["", "unit", *(column.title for column in comparison.columns), REAL_VS_REAL]
    rows = [[escape_markdown(text) for text in header]]
    for i, measure in enumerate(comparison.measures):
        label = f"{measure.label} {measure.arrow}".strip()
        cells = [format_markdown_cell(cell) for cell in comparison.row(i)]
        ends = [escape_markdown(t) for t in (label, measure.unit, comparison.real_vs_real_text(i))]
        rows.append([*ends[:2], *cells, ends[2]])
    if len(comparison.columns) > len(comparison.measures):
        rows = [list(row) for row in zip(*rows, strict=True)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    # The first two columns are aligned left, the others right.
    rules = ["-" * (w + 1) + ("-" if i < 2 else ":") for i, w in enumerate(widths)]
    lines.insert(1, f"|{'|'.join(rules)}|")
    return lines


def format_markdown_cell(cell: Cell) -> str:
    """Return a cell in Markdown, bold if it is the best of its row."""
    if not cell.is_best:
        return escape_markdown(format_cell(cell))
    return f"**{escape_markdown(format_cell(cell).removesuffix(' *'))}**"


def escape_markdown(text: str) -> str:
    """Return text that Markdown renders unchanged."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False))
