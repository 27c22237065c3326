"""The metrics of one record as a table in the terminal.

Conditions that the numbers share are above the table, or in the heading of a section; a row has
only what distinguishes it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from genlab.metrics.sections import SECTIONS, section_of_metric
from genlab.tables import (
    TableRow,
    format_standard_error,
    format_table,
    format_to_error_digits,
    terminal_width,
    wrap_words,
)

Row = dict[str, Any]  # of a record
HEADER = ["metric", "value", "± s.e.", "real", "unit", ""]
ARROWS = {"lower": " ↓", "higher": " ↑"}
REAL_LINE = "real: what real items score in the place of the samples"


def print_metrics(rows: list[Row]) -> None:
    """Print the rows of a record as a table with sections, and their notes."""
    width = terminal_width()
    for line in format_metrics_table(rows, width):
        print(line)
    for row in rows:
        if row["note"]:
            print("\n".join(wrap_words(row["note"], width)))


def format_metrics_table(rows: list[Row], width: int) -> list[str]:
    """Return the lines of the table of a record's rows, up to `width` columns wide."""
    if not rows:
        return ["no metric was measured"]
    sections = {
        name: [row for row in rows if section_of_metric(row["metric"]) == name] for name in SECTIONS
    }
    sections = {name: part for name, part in sections.items() if part}
    shared = conditions_common_to_sections(list(sections.values()))
    above = shared
    if len(sections) == 1 and (tag := shared_tag(rows)):
        above = {"tag": tag} | shared
    lines = [
        line for text in format_lines_above_table(rows, above) for line in wrap_words(text, width)
    ]
    table: list[TableRow] = []
    for name, part in sections.items():
        in_section = {"tag": shared_tag(part)} if shared_tag(part) else {}
        in_section |= {
            key: value
            for key, value in uniform_conditions(part).items()
            if shared.get(key) != value and key != "features"
        }
        if len(sections) > 1:
            details = format_conditions(in_section)
            table.append(name + (f": {details}" if details else ""))
        table += [format_record_row(row, shared | in_section) for row in part]
    return lines + format_table_without_empty_columns(table, width)


def format_table_without_empty_columns(table: list[TableRow], width: int) -> list[str]:
    """Return the lines of a table without the columns that are empty in all rows."""
    cells = [row for row in table if not isinstance(row, str)]
    filled = [j for j in range(len(HEADER)) if any(row[j] for row in cells)]
    rows = [row if isinstance(row, str) else [row[j] for j in filled] for row in table]
    return format_table([HEADER[j] for j in filled], rows, width)


def format_record_row(row: Row, shared: dict[str, Any]) -> list[str]:
    """Return the cells of a row, without the conditions that it shares with others."""
    value, error = row["value"], row["error"]
    number = "not finite" if value is None else format_to_error_digits(value, error)
    own = {"tag": row["tag"]} | conditions_as_text(row)
    own = {
        key: value
        for key, value in own.items()
        if shared.get(key) != value
        and not (key == "features" and row_name_ends_with_features(row, value))
    }
    return [
        row["name"] + ARROWS.get(row.get("better", ""), ""),
        number,
        "" if error is None else f"± {format_standard_error(error)}",
        format_real_vs_real(row["real_vs_real"], error),
        row["unit"],
        format_conditions(own),
    ]


def format_real_vs_real(real: float | None, error: float | None) -> str:
    """Return the number of held-out data with the digits of the row's error, four at most."""
    return min(format_to_error_digits(real), format_to_error_digits(real, error), key=len)


# --- conditions -----------------------------------------------------------------------------------


def conditions_as_text(row: Row) -> dict[str, str]:
    """Return the conditions of a row as text."""
    return {str(key): str(value) for key, value in (row["conditions"] or {}).items()}


def row_name_ends_with_features(row: Row, features: str) -> bool:
    """Whether a row's name ends with its feature space: precision_pixels."""
    return bool(row["name"].endswith(f"_{features.split(' ')[0]}"))


def uniform_conditions(rows: list[Row]) -> dict[str, str]:
    """Return the conditions of several rows that have one value wherever they occur."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        for key, value in conditions_as_text(row).items():
            found.setdefault(key, Counter())[value] += 1
    return {
        key: next(iter(values))
        for key, values in found.items()
        if len(values) == 1 and (values.total() > 1 or len(rows) == 1)
    }


def conditions_common_to_sections(sections: list[list[Row]]) -> dict[str, str]:
    """Return the most common value of the conditions that occur in several sections.

    Of a single section they are those that have one value.
    """
    if len(sections) == 1:
        return uniform_conditions(sections[0])
    found: dict[str, Counter[str]] = {}
    sections_of: dict[tuple[str, str], set[int]] = {}
    for i, rows in enumerate(sections):
        for row in rows:
            for key, value in conditions_as_text(row).items():
                found.setdefault(key, Counter())[value] += 1
                sections_of.setdefault((key, value), set()).add(i)
    common = {key: values.most_common(1)[0][0] for key, values in found.items()}
    return {key: value for key, value in common.items() if len(sections_of[key, value]) > 1}


def shared_tag(rows: list[Row]) -> str:
    """Return the tag that all rows of a section have, or ""."""
    tags = {row["tag"] for row in rows}
    return tags.pop() if len(tags) == 1 else ""


def format_lines_above_table(rows: list[Row], shared: dict[str, str]) -> list[str]:
    """Return the lines above the table: shared conditions, feature spaces, what `real` is."""
    lines = []
    hidden = {"features", "real_vs_real"}
    if plain := format_conditions({k: v for k, v in shared.items() if k not in hidden}):
        lines.append(plain)
    spaces = dict.fromkeys(row["conditions"].get("features") for row in rows if row["conditions"])
    if described := [str(space) for space in spaces if space and " " in space]:
        lines.append(f"features: {'; '.join(described)}")
    if any(row["real_vs_real"] is not None for row in rows):
        counts = f" ({shared['real_vs_real']})" if "real_vs_real" in shared else ""
        lines.append(f"{REAL_LINE}{counts}")
    return lines


def format_conditions(conditions: dict[str, str]) -> str:
    """Return conditions as text: "bound, n=1000, split=test"."""
    return ", ".join(
        value if key == "tag" else f"{'real' if key == 'real_vs_real' else key}={value}"
        for key, value in conditions.items()
    )
