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

from genlab.comparison.run_records import plain_value
from genlab.comparison.table import Comparison
from genlab.console import show

LEGEND = "± standard error; over seeds, standard deviation. * the best. · no such number:"


def print_table(found: Comparison) -> None:
    """Print the numbers: models across, in as many tables as the terminal's width asks for; many models go down."""
    floors = [found.floor(i) for i in range(len(found.measures))]
    heads = [" ".join(filter(None, (m.label, m.arrow))) for m in found.measures]
    text = [
        [line(found, i, j) for j in range(len(found.columns))] for i in range(len(found.measures))
    ]
    titles = [c.title for c in found.columns]
    if not found.measures:
        print(f"{', '.join(titles)}: none of them was measured")
    elif len(titles) > len(heads):
        units = [m.unit for m in found.measures]
        rows = [[title, *(text[i][j] for i in range(len(heads)))] for j, title in enumerate(titles)]
        rows.append(["floor", *floors])
        show(
            ["model", *(f"{h} [{u}]" if u else h for h, u in zip(heads, units, strict=True))], rows
        )
    else:
        for part in parts(titles, text, len(max(heads, key=len)) + 24):
            rows = [
                [h, m.unit, *(t[j] for j in part), f]
                for h, m, t, f in zip(heads, found.measures, text, floors, strict=True)
            ]
            show(["", "unit", *(titles[j] for j in part), "floor"], rows)
    for what, columns in found.notes().items():
        print(f"{what}: " + "; ".join(f"{label} ({when})" for label, when in columns.items()))
    if blanks := found.blanks():
        print(LEGEND)
        for why, columns in blanks.items():
            print(
                f"  {why}: "
                + "; ".join(f"{label} ({', '.join(names)})" for label, names in columns.items())
            )


def parts(titles: list[str], text: list[list[str]], taken: int) -> list[list[int]]:
    """Return the columns that fit beside each other on the terminal, table by table."""
    room = (shutil.get_terminal_size().columns if sys.stdout.isatty() else 10**6) - taken
    found: list[list[int]] = [[]]
    used = 0
    for j, title in enumerate(titles):
        width = 2 + max(len(cell) for cell in (title, *(row[j] for row in text)))
        if found[-1] and used + width > room:
            found.append([])
            used = 0
        found[-1].append(j)
        used += width
    return found


def line(found: Comparison, i: int, j: int) -> str:
    """Return a cell as text: 97.94 ± 0.28 bound *."""
    cell = found.cells[i, j]
    if cell.value is None:
        return "·"
    seeds = (
        f"({cell.seeds} of {cell.seeds + cell.missing_seeds} seeds)" if cell.missing_seeds else ""
    )
    return " ".join(filter(None, (cell.text(), cell.tag, seeds, "*" if cell.best else "")))


def to_csv(found: Comparison) -> str:
    """Return a line for each model and measure, blanks with their reason; numbers as the records hold them."""
    head = [
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
        "floor",
        "best",
    ]
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow([*head, "conditions", "reason"])
    for (i, j), c in found.cells.items():
        m, blank = found.measures[i], c.value is None
        table.writerow([
            found.columns[j].label, m.metric, m.name, exact(c.value), exact(c.spread), c.kind, "" if blank else c.seeds, m.unit,
            m.better, c.tag, exact(c.floor), int(c.best), json.dumps(dict(m.conditions), ensure_ascii=False), c.reason,
        ])  # fmt: skip
    return written.getvalue()


def exact(value: float | None) -> str:
    return "" if value is None else repr(value) if math.isfinite(value) else str(value)


def to_markdown(found: Comparison) -> str:
    """Return the table in Markdown, the best of each row in bold, with what its blanks mean below it."""
    lines = [["", "unit", *(c.title for c in found.columns), "floor"]]
    for i, m in enumerate(found.measures):
        cells = [line(found, i, j) for j in range(len(found.columns))]
        lines.append([f"{m.label} {m.arrow}".strip(), m.unit, *cells, found.floor(i)])
    rows = [[escaped(text) for text in row] for row in lines]
    for i in range(len(found.measures)):
        for j, cell in enumerate(found.row(i)):
            if cell.best:
                rows[i + 1][j + 2] = f"**{rows[i + 1][j + 2].removesuffix(chr(92) + '*').strip()}**"
    if len(found.columns) > len(found.measures):  # many models go down
        rows = [list(row) for row in zip(*rows, strict=True)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    written = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    written.insert(
        1,
        "|" + "|".join("-" * (w + 1) + (":" if i > 1 else "-") for i, w in enumerate(widths)) + "|",
    )
    notes = [
        "",
        "± standard error; over seeds, standard deviation. Bold: the best. ·: no such number.",
        "",
    ]
    for what, columns in found.notes().items():
        notes.append(
            escaped(
                f"- {what}: " + "; ".join(f"{label} ({when})" for label, when in columns.items())
            )
        )
    for why, columns in found.blanks().items():
        notes.append(
            escaped(
                f"- {why}: "
                + "; ".join(f"{label} ({', '.join(names)})" for label, names in columns.items())
            )
        )
    notes += ["", "Trained by, at the step in brackets:", ""]
    for column in found.columns:
        for entry in column.entries:
            words = [
                str(w) for w in entry.info.get("command") or () if not str(w).startswith("out=")
            ]
            notes.append(
                escaped(f"- {column.label}: {plain_value(shlex.join(words))} ({entry.step:,})")
            )
    return "\n".join(written + notes).rstrip() + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it stands."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False))
