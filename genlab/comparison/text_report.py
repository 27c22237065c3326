"""A comparison as a table in the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence

from genlab.comparison.table import Cell, Comparison, Measure
from genlab.metrics.sections import SECTIONS, section_of_metric
from genlab.tables import (
    GAP,
    TableRow,
    format_table,
    longest_word_width,
    terminal_display_width,
    terminal_width,
    total_row_width,
    use_nonbreaking_spaces,
    wrap_words,
)
from genlab.untrusted.text import escape_markdown, to_csv_cell, to_printable_text

REAL_VS_REAL = "real vs. real"
LEGEND = (
    "± standard error; over seeds, standard deviation. * best. · no number. "
    f"{REAL_VS_REAL}: real items in the place of the samples."
)
EXACT_LEGEND = " Numbers are exact where no bound or estimate is named."
MARKDOWN_LEGEND = LEGEND.replace("* best. · no", "Bold: best. ·: no")
LABEL_WIDTH = 32  # of labels with conditions, which are wrapped
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
    width = terminal_width()
    titles = [column.title for column in comparison.columns]
    if not comparison.measures:
        lines = [f"{', '.join(titles)}: none of them was measured"]
    elif len(titles) > len(comparison.measures):
        lines = format_table_of_models_down(comparison, width)
    else:
        lines = format_table_of_models_across(comparison, width)
    notes = format_training_notes(comparison)
    notes += [LEGEND + EXACT_LEGEND if comparison.measures else ""]
    notes += format_blank_reasons(comparison)
    for line in (*lines, *(part for note in notes if note for part in wrap_words(note, width))):
        print(line)


def format_table_of_models_across(comparison: Comparison, width: int) -> list[str]:
    """Return the lines of tables with a row for each measure, in sections."""
    measures = comparison.measures
    rows_of: dict[str, list[int]] = {name: [] for name in SECTIONS}
    for i, measure in enumerate(measures):
        rows_of[section_of_metric(measure.metric)].append(i)
    rows_of = {name: rows for name, rows in rows_of.items() if rows}
    tag_of = {name: shared_tag(comparison, rows) for name, rows in rows_of.items()}
    titles = [*(column.title for column in comparison.columns), REAL_VS_REAL]
    text = [
        [
            *(
                use_nonbreaking_spaces(
                    format_cell(cell, hidden_tags=("exact", tag_of[section_of_metric(m.metric)]))
                )
                for cell in comparison.row_cells(i)
            ),
            comparison.real_vs_real_text(i),
        ]
        for i, m in enumerate(measures)
    ]
    labels = [measure_label_with_arrow(m) for m in measures]
    # conditions in a label may be wrapped
    label_width = min(
        max(map(terminal_display_width, labels)), max(LABEL_WIDTH, *map(longest_word_width, labels))
    )
    used = total_row_width([label_width, max(terminal_display_width(m.unit) for m in measures)])
    lines = []
    for columns in split_columns_into_tables(titles, text, width - used):
        table: list[TableRow] = []
        for name, rows in rows_of.items():
            table.append(f"{name}: {tag_of[name]}" if tag_of[name] else name)
            table += [[labels[i], measures[i].unit, *(text[i][j] for j in columns)] for i in rows]
        header = ["measure", "unit", *(use_nonbreaking_spaces(titles[j]) for j in columns)]
        lines += format_table(header, table, width)
    return lines


def measure_label_with_arrow(measure: Measure) -> str:
    """Return a measure's label, with the direction that is better after its name."""
    name, conditions = measure.name, measure.label.removeprefix(measure.name)
    return use_nonbreaking_spaces(f"{name} {measure.better_arrow}".rstrip()) + conditions


def format_table_of_models_down(comparison: Comparison, width: int) -> list[str]:
    """Return the lines of tables with a row for each model."""
    measures, titles = comparison.measures, [column.title for column in comparison.columns]
    units = [f"[{m.unit}]" if m.unit else "" for m in measures]
    heads = [
        " ".join(filter(None, (measure_label_with_arrow(m), unit)))
        for m, unit in zip(measures, units, strict=True)
    ]
    names = [*titles, REAL_VS_REAL]
    text = [
        [
            *(use_nonbreaking_spaces(format_cell(cell, hidden_tags=["exact"])) for cell in row),
            comparison.real_vs_real_text(i),
        ]
        for i, row in enumerate(map(comparison.row_cells, range(len(measures))))
    ]
    used = total_row_width([max(map(terminal_display_width, names))])
    lines = []
    for columns in split_columns_into_tables(heads, list(zip(*text, strict=True)), width - used):
        rows = [[name, *(text[i][k] for i in columns)] for k, name in enumerate(names)]
        lines += format_table(["model", *(heads[i] for i in columns)], rows, width)
    return lines


def split_columns_into_tables(
    titles: Sequence[str], text: Sequence[Sequence[str]], room: int
) -> list[list[int]]:
    """Return the columns of each table, such that every table fits the room for columns.

    Args:
        text: the rows.
    """
    tables: list[list[int]] = [[]]
    used = 0
    for j, title in enumerate(titles):
        column_width = GAP + max(map(terminal_display_width, (title, *(row[j] for row in text))))
        if tables[-1] and used + column_width > room:
            tables.append([])
            used = 0
        tables[-1].append(j)
        used += column_width
    return tables


def shared_tag(comparison: Comparison, rows: list[int]) -> str:
    """Return the tag that all numbers of some rows have, or ""."""
    tags = {cell.tag for i in rows for cell in comparison.row_cells(i) if cell.value is not None}
    return tags.pop() if len(tags) == 1 else ""


def format_cell(cell: Cell, *, hidden_tags: Sequence[str] = ()) -> str:
    """Return a cell as text: 97.94 ± 0.28 bound *."""
    if cell.value is None:
        return "·"
    seeds = ""
    if cell.num_missing_seeds:
        seeds = f"({cell.num_seeds} of {cell.num_seeds + cell.num_missing_seeds} seeds)"
    tag = "" if cell.tag in hidden_tags else cell.tag
    count = f"({cell.n})" if cell.n else ""
    best = "*" if cell.is_best else ""
    return " ".join(filter(None, (cell.format_text(), count, tag, seeds, best)))


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


def comparison_to_csv(comparison: Comparison) -> str:
    """Return one line for each model and measure, with the unrounded numbers of the records.

    A blank has its reason.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for (i, j), cell in comparison.cells.items():
        measure = comparison.measures[i]
        cells = [
            comparison.columns[j].label,
            measure.metric,
            measure.name,
            format_all_digits(cell.value),
            format_all_digits(cell.spread),
            cell.spread_kind,
            "" if cell.value is None else cell.num_seeds,
            measure.unit,
            measure.better,
            cell.tag,
            format_all_digits(cell.real_vs_real),
            int(cell.is_best),
            json.dumps(
                dict(measure.conditions) | ({"n": cell.n.removeprefix("n=")} if cell.n else {}),
                ensure_ascii=False,
            ),
            cell.blank_reason,
        ]
        writer.writerow(map(to_csv_cell, cells))
    return file.getvalue()


def format_all_digits(value: float | None) -> str:
    """Return a number with all its digits, "" for None."""
    if value is None:
        return ""
    return repr(value) if math.isfinite(value) else str(value)


# --- Markdown -------------------------------------------------------------------------------------


def comparison_to_markdown(comparison: Comparison) -> str:
    """Return the table in Markdown, the best of each row in bold, with notes below it."""
    lines = format_comparison_as_markdown_lines(comparison)
    notes = [*format_training_notes(comparison), *format_blank_reasons(comparison)]
    lines += ["", MARKDOWN_LEGEND, ""]
    lines += [escape_markdown(f"- {note}") for note in notes]
    lines += ["", "Trained by, at the step in brackets:", ""]
    for column in comparison.columns:
        for run in column.runs:
            words = map(str, run.metadata.get("command") or ())
            command = shlex.join(word for word in words if not word.startswith("out="))
            line = f"- {column.label}: {to_printable_text(command)} ({run.step:,})"
            lines.append(escape_markdown(line))
    return "\n".join(lines).rstrip() + "\n"


def format_comparison_as_markdown_lines(comparison: Comparison) -> list[str]:
    """Return the lines of the table; if there are more models than measures, models go down."""
    header = ["", "unit", *(column.title for column in comparison.columns), REAL_VS_REAL]
    rows = [[escape_markdown(text) for text in header]]
    for i, measure in enumerate(comparison.measures):
        label = f"{measure.label} {measure.better_arrow}".strip()
        cells = [format_markdown_cell(cell) for cell in comparison.row_cells(i)]
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
