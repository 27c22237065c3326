"""Runs and their records side by side: seeds of one recipe as one column, numbers in a row only under equal conditions."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from genlab.comparison.run_records import Entry, plain_value

# Conditions that describe a number and leave it comparable: the measurement's seed, what a model chose for itself.
DESCRIPTIVE = {"seed", "sampler", "steps", "terms", "from", "floor"}
ELSEWHERE = "measured under other conditions, in a place of its own"


@dataclass
class Column:
    """One model of the comparison: a run, or runs that differ in the seed alone."""

    entries: list[Entry]
    label: str = ""

    @property
    def title(self) -> str:
        """The label, with the number of seeds where there are several."""
        return self.label if len(self.entries) == 1 else f"{self.label} ({len(self.entries)} seeds)"


@dataclass(frozen=True)
class Measure:
    """What a row of the table shows: a number's name and the conditions under which it was had."""

    metric: str
    name: str
    unit: str
    better: str
    conditions: tuple[tuple[str, str], ...]
    label: str = field(
        default="", compare=False
    )  # the name, with what tells it from the same name's other rows

    @property
    def arrow(self) -> str:
        return {"lower": "↓", "higher": "↑"}.get(self.better, "")


@dataclass
class Cell:
    """One number, with its spread over items (standard error) or over seeds (standard deviation); or why there is none."""

    value: float | None = None
    spread: float | None = None
    kind: str = ""  # of the spread: s.e. | s.d.
    seeds: int = 1
    missing_seeds: int = 0
    tag: str = ""
    floor: float | None = None
    conditions: str = ""
    best: bool = False
    reason: str = ""

    def text(self) -> str:
        """Return the number as in a table: 97.94 ± 0.28."""
        if self.value is None:
            return "·"
        return number(self.value, self.spread) + (
            f" ± {number(self.spread, self.spread)}" if self.spread is not None else ""
        )


@dataclass
class Comparison:
    """The columns, the rows, and a cell for each pair of them."""

    columns: list[Column]
    measures: list[Measure]
    cells: dict[tuple[int, int], Cell]  # (row, column)

    def row(self, i: int) -> list[Cell]:
        return [self.cells[i, j] for j in range(len(self.columns))]

    def floor(self, i: int) -> str:
        """Return a row's floor; where the columns' differ, their range."""
        floors = sorted(c.floor for c in self.row(i) if c.floor is not None)
        if not floors:
            return ""
        low, high = (number(f) for f in (floors[0], floors[-1]))
        return low if low == high else f"{low} to {high}"

    def blanks(self) -> dict[str, dict[str, list[str]]]:
        """Return what the blank cells mean: reason -> column -> the rows' labels."""
        found: dict[str, dict[str, list[str]]] = {}
        for (i, j), cell in sorted(self.cells.items(), key=lambda item: item[0][::-1]):
            if cell.value is None:
                names = found.setdefault(cell.reason, {}).setdefault(self.columns[j].label, [])
                name = self.measures[i].name if cell.reason == ELSEWHERE else self.measures[i].label
                if name not in names:
                    names.append(name)
        return found

    def notes(self) -> dict[str, dict[str, str]]:
        """Return what runs said of themselves in training: the words without advice -> column -> in how many runs, from when."""
        found: dict[str, dict[str, str]] = {}
        for column in self.columns:
            said: dict[str, list[int]] = {}
            for entry in column.entries:
                for what, step in entry.notes.items():
                    said.setdefault(what, []).append(step)
            for what, steps in said.items():
                runs = (
                    f"{len(steps)} of {len(column.entries)} seeds, "
                    if len(column.entries) > 1
                    else ""
                )
                found.setdefault(what, {})[column.label] = f"{runs}from step {min(steps):,}"
        return found

    def differences(self) -> dict[str, list[str | None]]:
        """Return the config's keys that differ -> each column's value, None where a column has no such key."""
        configs = [c.entries[0].recipe | {"model": c.entries[0].model} for c in self.columns]
        keys = dict.fromkeys(k for config in configs for k in config)
        has = {k: sum(k in config for config in configs) for k in keys}
        shown = lambda config, k: plain_value(config[k]) if k in config else None  # noqa: E731
        found = {
            k: [shown(config, k) for config in configs]
            for k in sorted(keys, key=lambda k: (k != "model", -has[k]))
        }
        return {plain_value(k): values for k, values in found.items() if len(set(values)) > 1}


def compared(entries: Iterable[Entry], metrics: list[str] | None = None) -> Comparison:
    """Return entries side by side: grouped by recipe, aligned by name and conditions, the best of each row marked."""
    columns = grouped(list(entries))
    label(columns)
    measures = named_apart(merged([keys(e) for c in columns for e in c.entries]))
    if metrics is not None:
        measures = [m for m in measures if m.metric in metrics]
    cells = {(i, j): cell(m, c) for i, m in enumerate(measures) for j, c in enumerate(columns)}
    found = Comparison(columns, measures, cells)
    for i, measure in enumerate(measures):
        there = [c for c in found.row(i) if c.value is not None and math.isfinite(c.value)]
        if len(there) > 1 and measure.better in ("lower", "higher"):
            best = (min if measure.better == "lower" else max)(c.value for c in there)
            for c in there:
                c.best = c.value == best and any(other.value != best for other in there)
    return found


# --- columns ----------------------------------------------------------------------------------------------------------


def grouped(entries: list[Entry]) -> list[Column]:
    """Return one column for runs that differ in the seed alone; a seed that is there twice starts another."""
    columns: dict[str, Column] = {}
    for entry in entries:
        step = (
            None if entry.config.get("trainer.max_time") else entry.step
        )  # a run that time ends is at whatever step it is
        same = [
            entry.label,
            entry.model,
            entry.info.get("dataset"),
            entry.recipe,
            step,
            entry.sampler,
        ]
        for again in range(len(entries)):
            key = json.dumps([*same, again], sort_keys=True, default=str)
            if key not in columns or entry.seed not in {e.seed for e in columns[key].entries}:
                break
        columns.setdefault(key, Column([])).entries.append(entry)
    return list(columns.values())


def label(columns: list[Column]) -> None:
    """Give each column a label of its own: the recipe's name, then what tells it from others of that name."""
    for column in columns:
        column.label = plain_value(column.entries[0].label or column.entries[0].model)
    for name in dict.fromkeys(c.label for c in columns):
        alike = [c for c in columns if c.label == name]
        if len(alike) == 1:
            continue
        configs = [{"on": c.entries[0].info.get("dataset")} | c.entries[0].recipe for c in alike]
        configs = [
            config | {"at step": c.entries[0].step, "sampler": tuple(c.entries[0].sampler.values())}
            for config, c in zip(configs, alike, strict=True)
        ]
        every = dict.fromkeys(k for config in configs for k in config)
        differ = [
            k for k in every if len({plain_value(config.get(k, "")) for config in configs}) > 1
        ]
        for column, config in zip(alike, configs, strict=True):
            said = [
                short(k, config[k])
                for k in differ
                if k in config and not k.endswith("_target_") and config[k] != ()
            ]
            column.label = " ".join([name, ", ".join(s for s in said[:3] if s)]).strip()
        if len({c.label for c in alike}) < len(alike):  # what was typed may say it in fewer words
            typed = [c.entries[0].typed for c in alike]
            differ = [
                k
                for k in dict.fromkeys(k for words in typed for k in words)
                if len({w.get(k) for w in typed}) > 1
            ]
            labels = [
                " ".join([name, ", ".join(short(k, w[k]) for k in differ if k in w)]).strip()
                for w in typed
            ]
            if len(set(labels)) == len(alike):
                for column, text in zip(alike, labels, strict=True):
                    column.label = plain_value(text)
    seen: dict[str, int] = {}
    for column in columns:
        seen[column.label] = seen.get(column.label, 0) + 1
        if seen[column.label] > 1:
            column.label += f" #{seen[column.label]}"


def short(key: str, value: Any) -> str:
    """Return a difference as part of a label: on mnist, latent=2, step 20,000, ddim 10."""
    if key == "at step":
        return f"step {value:,}"
    if key == "sampler":
        return " ".join(map(plain_value, value))
    return f"on {value}" if key == "on" else f"{key.rpartition('.')[2]}={plain_value(value)}"


# --- rows -------------------------------------------------------------------------------------------------------------


def conditions(entry: Entry, row: dict[str, Any]) -> dict[str, str]:
    """Return all conditions of a number, those of its data among them."""
    said = {str(k): plain_value(v) for k, v in (row.get("conditions") or {}).items()}
    if "data" in said:  # what was done to the values: "dequantised, one draw"
        said["values"] = said.pop("data")
    return entry.data(row) | said


def measure_of(entry: Entry, row: dict[str, Any]) -> Measure:
    """Return the row of the table that a record's row belongs to."""
    aside = (
        DESCRIPTIVE
        | ({"n"} if row["metric"] == "cost" else set())
        | ({"values"} if row["unit"] == "bits/dim" else set())
    )
    kept = {
        k: v
        for k, v in conditions(entry, row).items()
        if k not in aside and not k.startswith("log Z")
    }
    return Measure(
        row["metric"],
        row["name"],
        row["unit"],
        row.get("better", "neither"),
        tuple(sorted(kept.items())),
    )


def keys(entry: Entry) -> list[Measure]:
    return [measure_of(entry, row) for row in (entry.record or {}).get("metrics", ())]


def merged(lists: list[list[Measure]]) -> list[Measure]:
    """Return all that the lists hold in an order that keeps, as far as it can, that of each."""
    order: list[Measure] = []
    for one in sorted(lists, key=len, reverse=True):
        at = 0
        for item in one:
            if item not in order:
                order.insert(
                    max([at, *(i + 1 for i, other in enumerate(order) if other.name == item.name)]),
                    item,
                )
            at = order.index(item) + 1
    first = {
        key: i
        for i, m in reversed(list(enumerate(order)))
        for key in (m.metric, (m.metric, m.name))
    }
    together = lambda m: (m.metric == "cost", first[m.metric], first[m.metric, m.name])  # noqa: E731
    return sorted(order, key=together)


def named_apart(measures: list[Measure]) -> list[Measure]:
    """Return the rows with labels: the name, and where there are several of it the conditions in which they differ."""
    found = []
    for m in measures:
        alike = [dict(other.conditions) for other in measures if other.name == m.name]
        own = dict(m.conditions)
        every = dict.fromkeys(k for c in alike for k in c)
        differ = [k for k in every if len({c.get(k) for c in alike}) > 1]
        said = ", ".join(f"{k}={own[k]}" for k in differ if k in own)
        found.append(
            Measure(
                m.metric,
                m.name,
                m.unit,
                m.better,
                m.conditions,
                m.name + (f" ({said})" if said else ""),
            )
        )
    return found


# --- cells ------------------------------------------------------------------------------------------------------------


def cell(measure: Measure, column: Column) -> Cell:
    """Return a column's number in a row: of one run with its standard error, of several the mean and deviation."""
    rows = [
        (e, row)
        for e in column.entries
        for row in (e.record or {}).get("metrics", ())
        if measure_of(e, row) == measure
    ]
    if not rows:
        return Cell(reason=reason(measure, column.entries[0]))
    values = [math.nan if row["value"] is None else float(row["value"]) for _, row in rows]
    floors = [row["floor"] for _, row in rows if row.get("floor") is not None]
    several = len(values) > 1
    return Cell(
        value=statistics.fmean(values),
        spread=deviation(values) if several else rows[0][1].get("error"),
        kind="s.d." if several else "s.e." if rows[0][1].get("error") is not None else "",
        seeds=len(values),
        missing_seeds=len(column.entries) - len(values),
        tag="/".join(dict.fromkeys(row["tag"] for _, row in rows)),
        floor=statistics.fmean(floors) if floors else None,
        conditions=" | ".join(dict.fromkeys(joined(conditions(e, row)) for e, row in rows)),
    )


def deviation(values: list[float]) -> float:
    """Return the standard deviation over seeds, with n − 1 in the denominator."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def reason(measure: Measure, entry: Entry) -> str:
    """Return why an entry has no number in a row."""
    if entry.record is None:
        return entry.missing
    own = keys(entry)
    if any(m.name == measure.name for m in own):
        return ELSEWHERE
    if others := [m.name for m in own if m.metric == measure.metric and m.metric != "cost"]:
        return f"{entry.model} gives {', '.join(dict.fromkeys(others))} instead"
    if why := (entry.record.get("absent") or {}).get(measure.metric):
        return str(why)
    if measure.metric == "cost" and any(m.metric == "cost" for m in own):
        return "its run did not log it, or it cannot sample"
    return "its record does not hold it; measure it with `genlab evaluate`"


# --- showing ----------------------------------------------------------------------------------------------------------


def joined(said: dict[str, str]) -> str:
    return ", ".join(f"{k}={v}" for k, v in said.items())


def number(value: float | None, spread: float | None = None) -> str:
    """Return a number with as many digits as its spread bears (two of the spread), or four where there is none."""
    if value is None or not math.isfinite(value):
        return "" if value is None else str(value)
    if value == 0 and not spread:
        return "0"
    if spread and math.isfinite(spread):
        digits = 1 - math.floor(math.log10(abs(spread)))
    else:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if digits > 7:
        return f"{value:.2g}"
    return f"{value:,.{max(digits, 0)}f}"
