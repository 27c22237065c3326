"""Summary of a dataset: counts, classes, columns, decisions and files left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from genlab.errors import make_printable

MAX_NAMES_SHOWN = 10  # files that a line names, of those left out for the same reason
MAX_CLASSES_SHOWN = 12  # classes that the line of classes names


@dataclass
class Column:
    """A column of a table and the map to its standardized values: (value − mean) / scale.

    Attributes:
        unit: the unit that the column name states in brackets, as `mass [kg]`; "" without one.
        is_integer: whether all values of the column are integers.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    unit: str = ""
    is_integer: bool = False


class LeftOut:
    """The files, rows or cells of a source that a dataset does not use, by reason."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, name: str = "", count: int = 1) -> None:
        """Count what is left out for a reason, such as "unreadable" or "no partner".

        Args:
            name: the file or the row, for the message; only the first names are kept.
        """
        self.counts[reason] += count
        names = self.names.setdefault(reason, [])
        if name and len(names) <= MAX_NAMES_SHOWN:
            names.append(name)

    def lines(self) -> list[str]:
        """Return one line for each reason: its count and the first names."""
        return format_left_out_lines(self.to_json())

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return reason -> {"count": …, "examples": […]}."""
        return {
            reason: {"count": count, "examples": self.names[reason][:MAX_NAMES_SHOWN]}
            for reason, count in self.counts.items()
        }


def format_left_out_lines(left_out: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for each reason: its count and the first names."""
    lines = []
    for reason, entry in left_out.items():
        names = [make_printable(name) for name in entry["examples"]]
        if names and entry["count"] > len(names):
            names.append("…")
        line = f"left out, {reason}: {entry['count']:,}"
        lines.append(f"{line}: {', '.join(names)}" if names else line)
    return lines


@dataclass
class DataSummary:
    """The summary of a dataset as it was understood: a run prints it and writes data.json.

    Attributes:
        splits: split -> number of items.
        range: the interval of an image's values; None for other data.
        shown: what the model receives, as "gray, 256 levels, values in [-1, 1]".
        classes: class name -> {"number": …, split: count}; empty without labels.
        columns: the columns of a table.
        files: number of files read; None for data that is not read from files of the user.
        left_out: reason -> {"count": …, "examples": […]}.
        notes: decisions made while reading, each one sentence.
        facts: further numbers of one kind of data, as {"tokens": 65, "symbols": "…"}.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    splits: dict[str, int]
    shown: str
    range: tuple[float, float] | None = None
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: list[Column] = field(default_factory=list)
    files: int | None = None
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    source: DataSummary | None = None  # of the conditions of items, as the images of domain A

    def to_json(self) -> dict[str, Any]:
        """Return the plain values of data.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSummary:
        """Return the summary of the values of `to_json`.

        Raises:
            ValueError: the values are not those of a summary.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_python(values)

    @property
    def left_out_lines(self) -> list[str]:
        """One line for each reason to leave something out: its count and the first names."""
        return format_left_out_lines(self.left_out)

    def lines(self) -> list[str]:
        """Return the lines that a run prints, each with one fact."""
        sizes = ", ".join(f"{size:,} {split}" for split, size in self.splits.items() if size)
        lines = [f"{self.name}: {sizes}; {self.shown}"]
        if self.files is not None:
            lines[0] += f"; {self.files:,} {'file' if self.files == 1 else 'files'} read"
        if self.classes:
            lines.append(self._format_class_counts())
        lines += self.notes + self.left_out_lines
        if self.source:
            lines += [f"source {line}" for line in self.source.lines()]
        return lines

    def _format_class_counts(self) -> str:
        shown = list(self.classes.items())[:MAX_CLASSES_SHOWN]
        counts = [sum(c for key, c in entry.items() if key != "number") for _, entry in shown]
        texts = []
        has_names = any(name != str(entry["number"]) for name, entry in self.classes.items())
        for (name, entry), count in zip(shown, counts, strict=True):
            number = str(entry["number"])
            label = f"{number} = {make_printable(name)}" if has_names else number
            texts.append(f"{label} ({count:,})")
        more = ", …" if len(self.classes) > len(shown) else ""
        return f"{len(self.classes):,} classes: {', '.join(texts)}{more}"
