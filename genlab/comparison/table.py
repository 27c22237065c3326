"""The table of a comparison: a column per recipe, a row per measure.

Runs that differ only in the seed are one column. Numbers are in one row only if they were measured
under the same conditions.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from genlab.comparison.run_records import RunRecord
from genlab.metrics.sections import EFFICIENCY_METRIC
from genlab.tables import format_to_error_digits, format_with_error
from genlab.untrusted.text import to_printable_text

# Conditions that describe a number but leave it comparable: the measurement's seed, and options
# that a model chooses for itself. The number of items is shown beside a number if it differs.
DESCRIPTIVE_CONDITIONS = {
    *("n", "seed", "sampler", "steps", "elbo_timesteps", "from", "real_vs_real"),
    *("converted from range", "samples"),
}
# Metrics whose value is a mean over items: its expectation does not depend on their number.
MEANS_OVER_ITEMS = {"likelihood", "ode_likelihood", "reconstruction", "paired_translation"}
OTHER_CONDITIONS_REASON = "measured under other conditions, in its own row"
MAX_LABEL_DIFFERENCES = 3


@dataclass
class Column:
    """One model of the comparison: a run, or runs that differ only in the seed."""

    runs: list[RunRecord]
    label: str = ""

    @property
    def title(self) -> str:
        """The label, with the number of seeds if there are several."""
        return self.label if len(self.runs) == 1 else f"{self.label} ({len(self.runs)} seeds)"


@dataclass(frozen=True)
class Measure:
    """A row of the table: a number's name and the conditions under which it was measured."""

    metric: str
    name: str
    unit: str
    better: str  # lower | higher | neither
    conditions: tuple[tuple[str, str], ...]
    # The name, with the conditions that distinguish the rows of that name.
    label: str = field(default="", compare=False)

    @property
    def better_arrow(self) -> str:
        """The direction in which the number is better."""
        return {"lower": "↓", "higher": "↑"}.get(self.better, "")


@dataclass
class Cell:
    """One number with its spread, or the reason why there is none.

    Attributes:
        spread: the standard error over items, or the standard deviation over seeds.
        spread_kind: "s.e.", "s.d." or "".
        real_vs_real: the same number of real items in the place of the samples.
        n: the number of items, as "n=500", if it differs in the row.
    """

    value: float | None = None
    spread: float | None = None
    spread_kind: str = ""
    num_seeds: int = 1
    num_missing_seeds: int = 0
    tag: str = ""
    real_vs_real: float | None = None
    conditions: str = ""
    n: str = ""
    is_best: bool = False
    blank_reason: str = ""

    def format_text(self) -> str:
        """Return the number as tables show it: 97.94 ± 0.28."""
        if self.value is None:
            return "·"
        return format_with_error(self.value, self.spread)


@dataclass
class Comparison:
    """The columns, the rows, and a cell for each pair of them."""

    columns: list[Column]
    measures: list[Measure]
    cells: dict[tuple[int, int], Cell]  # (row, column)

    def row_cells(self, i: int) -> list[Cell]:
        """Return the cells of a row."""
        return [self.cells[i, j] for j in range(len(self.columns))]

    def real_vs_real_text(self, i: int) -> str:
        """Return a row's real-vs-real number; where the columns' numbers differ, their range."""
        values = sorted(c.real_vs_real for c in self.row_cells(i) if c.real_vs_real is not None)
        if not values:
            return ""
        low, high = format_to_error_digits(values[0]), format_to_error_digits(values[-1])
        return low if low == high else f"{low} to {high}"

    def blank_reasons(self) -> dict[str, dict[str, list[str]]]:
        """Return why cells are blank: reason -> column -> the rows' labels."""
        reasons: dict[str, dict[str, list[str]]] = {}
        by_column = sorted(self.cells.items(), key=lambda item: item[0][::-1])
        for (i, j), cell in by_column:
            if cell.value is not None:
                continue
            columns = reasons.setdefault(cell.blank_reason, {})
            names = columns.setdefault(self.columns[j].label, [])
            measure = self.measures[i]
            is_elsewhere = cell.blank_reason == OTHER_CONDITIONS_REASON
            name = measure.name if is_elsewhere else measure.label
            if name not in names:
                names.append(name)
        return reasons

    def training_notes(self) -> dict[str, dict[str, str]]:
        """Return what training noted: note -> column -> in how many runs, from which step on."""
        notes: dict[str, dict[str, str]] = {}
        for column in self.columns:
            steps_of: dict[str, list[int]] = {}
            for run in column.runs:
                for note, step in run.training_notes.items():
                    steps_of.setdefault(note, []).append(step)
            for note, steps in steps_of.items():
                text = f"from step {min(steps):,}"
                if len(column.runs) > 1:
                    text = f"{len(steps)} of {len(column.runs)} seeds, {text}"
                notes.setdefault(note, {})[column.label] = text
        return notes

    def config_differences(self) -> dict[str, list[str | None]]:
        """Return the options that differ -> each column's value, None where it lacks the option.

        The model comes first, then the options that most columns have.
        """
        configs = [c.runs[0].training_options | {"model": c.runs[0].model} for c in self.columns]
        keys = dict.fromkeys(key for config in configs for key in config)
        counts = {key: sum(key in config for config in configs) for key in keys}
        differences: dict[str, list[str | None]] = {}
        for key in sorted(keys, key=lambda key: (key != "model", -counts[key])):
            values = [
                to_printable_text(config[key]) if key in config else None for config in configs
            ]
            if len(set(values)) > 1:
                differences[to_printable_text(key)] = values
        return differences


def make_comparison(runs: Iterable[RunRecord], metrics: Sequence[str] | None = None) -> Comparison:
    """Return runs side by side, with the best number of each row marked.

    Args:
        metrics: the metrics to show; None shows all.
    """
    runs = list(runs)
    convert_densities_to_unit_range(runs)
    columns = group_runs_into_columns(runs)
    label_columns(columns)
    measures = label_measures(
        merge_measure_lists([measures_of_run(run) for c in columns for run in c.runs])
    )
    if metrics is not None:
        measures = [measure for measure in measures if measure.metric in metrics]
    cells = {
        (i, j): make_cell(measure, column)
        for i, measure in enumerate(measures)
        for j, column in enumerate(columns)
    }
    comparison = Comparison(columns, measures, cells)
    for i, measure in enumerate(measures):
        mark_best_cells(measure, comparison.row_cells(i))
        counts = {cell.n for cell in comparison.row_cells(i) if cell.value is not None}
        for cell in comparison.row_cells(i):
            cell.n = cell.n if len(counts) > 1 else ""
    return comparison


def convert_densities_to_unit_range(runs: list[RunRecord]) -> None:
    """Convert the densities of all runs to values in [0, 1], where the runs' ranges differ.

    With y = (x − a) / (b − a) of an item of D values, −log p(y) = −log p(x) − D log(b − a).
    """
    ranges: dict[str, set[Any]] = {}
    for run in runs:
        for row in run.rows:
            if density_range := run.density_range(row):
                ranges.setdefault(row["name"], set()).add(density_range)
    different = {name for name, found in ranges.items() if len(found) > 1}
    for run in runs:
        run.set_densities_to_convert(different)


def mark_best_cells(measure: Measure, cells: list[Cell]) -> None:
    """Mark the best cells of a row, unless all numbers are equal or their n differ."""
    differs_in_n = len({c.n for c in cells if c.value is not None}) > 1
    if differs_in_n and measure.metric not in MEANS_OVER_ITEMS:
        return  # a distance between samples, such as Fréchet's, depends on their number
    values = {id(c): c.value for c in cells if c.value is not None and math.isfinite(c.value)}
    if len(set(values.values())) < 2 or measure.better not in ("lower", "higher"):
        return
    best = (min if measure.better == "lower" else max)(values.values())
    for cell in cells:
        cell.is_best = values.get(id(cell)) == best


# --- columns --------------------------------------------------------------------------------------


def group_runs_into_columns(runs: list[RunRecord]) -> list[Column]:
    """Return one column for runs that differ only in the seed.

    A seed that occurs twice starts another column.
    """
    columns: dict[str, Column] = {}
    for run in runs:
        # A run that ends by time may end at any step.
        step = None if run.config.get("trainer.max_minutes") else run.step
        dataset = run.metadata.get("dataset")
        identity = [run.label, run.model, dataset, run.training_options, step, run.sampler]
        key = ""
        for occurrence in range(len(runs)):
            key = json.dumps([*identity, occurrence], sort_keys=True, default=str)
            if key not in columns or run.seed not in {other.seed for other in columns[key].runs}:
                break
        columns.setdefault(key, Column([])).runs.append(run)
    return list(columns.values())


def label_columns(columns: list[Column]) -> None:
    """Give each column its own label: the recipe's name and what distinguishes it from others."""
    for column in columns:
        column.label = to_printable_text(column.runs[0].label or column.runs[0].model)
    for name in dict.fromkeys(column.label for column in columns):
        namesakes = [column for column in columns if column.label == name]
        if len(namesakes) == 1:
            continue
        label_columns_by_config(namesakes, name)
        if len({column.label for column in namesakes}) < len(namesakes):
            label_columns_by_command(namesakes, name)
    counts: dict[str, int] = {}
    for column in columns:
        counts[column.label] = counts.get(column.label, 0) + 1
        if counts[column.label] > 1:
            column.label += f" #{counts[column.label]}"


def label_columns_by_config(columns: list[Column], name: str) -> None:
    """Label columns of one name by the first options of their configs that differ."""
    configs = []
    for column in columns:
        run = column.runs[0]
        extra = {"at step": run.step, "sampler": tuple(run.sampler.values())}
        configs.append({"on": run.metadata.get("dataset")} | run.training_options | extra)
    keys = dict.fromkeys(key for config in configs for key in config)
    changed = [key for key in keys if len({to_printable_text(c.get(key, "")) for c in configs}) > 1]
    for column, config in zip(columns, configs, strict=True):
        shown = [
            format_label_difference(key, config[key])
            for key in changed
            if key in config and not key.endswith("_target_") and config[key] != ()
        ]
        differences = ", ".join(text for text in shown[:MAX_LABEL_DIFFERENCES] if text)
        column.label = f"{name} {differences}".strip()


def label_columns_by_command(columns: list[Column], name: str) -> None:
    """Label columns of one name by the typed overrides that differ, if these distinguish all."""
    typed = [column.runs[0].typed_overrides for column in columns]
    keys = dict.fromkeys(key for overrides in typed for key in overrides)
    changed = [key for key in keys if len({overrides.get(key) for overrides in typed}) > 1]
    labels = []
    for overrides in typed:
        shown = [
            format_label_difference(key, overrides[key]) for key in changed if key in overrides
        ]
        labels.append(f"{name} {', '.join(shown)}".strip())
    if len(set(labels)) == len(columns):
        for column, label in zip(columns, labels, strict=True):
            column.label = to_printable_text(label)


def format_label_difference(key: str, value: Any) -> str:
    """Return a difference as part of a label: on mnist, latent=2, step 20,000, ddim 10."""
    if key == "at step":
        return f"step {value:,}"
    if key == "sampler":
        return " ".join(map(to_printable_text, value))
    return f"on {value}" if key == "on" else f"{key.rpartition('.')[2]}={to_printable_text(value)}"


# --- rows -----------------------------------------------------------------------------------------


def conditions_with_data(run: RunRecord, row: dict[str, Any]) -> dict[str, str]:
    """Return all conditions of a number, including those of its data."""
    conditions = {str(k): to_printable_text(v) for k, v in (row.get("conditions") or {}).items()}
    if "data" in conditions:  # how the values were changed: "dequantized, one draw"
        conditions["values"] = conditions.pop("data")
    return run.data_conditions(row) | conditions


def record_row_to_measure(run: RunRecord, row: dict[str, Any]) -> Measure:
    """Return the table's row for a row of a record."""
    ignored = set(DESCRIPTIVE_CONDITIONS)
    if row["unit"] == "bits/dim":
        ignored.add("values")
    conditions = {
        key: value
        for key, value in conditions_with_data(run, row).items()
        if key not in ignored and not key.startswith("log Z")
    }
    better = row.get("better", "neither")
    ordered = tuple(sorted(conditions.items()))
    return Measure(row["metric"], row["name"], row["unit"], better, ordered)


def measures_of_run(run: RunRecord) -> list[Measure]:
    """Return the rows of a run's record."""
    return [record_row_to_measure(run, row) for row in run.rows]


def merge_measure_lists(lists: list[list[Measure]]) -> list[Measure]:
    """Return all measures of the lists once, in an order close to that of each list.

    Measures of one metric and of one name are together, and efficiency comes last.
    """
    order: list[Measure] = []
    for measures in sorted(lists, key=len, reverse=True):
        at = 0
        for measure in measures:
            if measure not in order:
                same_name = [i + 1 for i, m in enumerate(order) if m.name == measure.name]
                order.insert(max([at, *same_name]), measure)
            at = order.index(measure) + 1
    first: dict[Any, int] = {}
    for i, m in enumerate(order):
        first.setdefault(m.metric, i)
        first.setdefault((m.metric, m.name), i)

    def sort_key(m: Measure) -> tuple[bool, int, int]:
        return m.metric == EFFICIENCY_METRIC, first[m.metric], first[m.metric, m.name]

    return sorted(order, key=sort_key)


def label_measures(measures: list[Measure]) -> list[Measure]:
    """Return the rows with labels: the name, and the conditions that distinguish its rows."""
    labeled = []
    for measure in measures:
        namesakes = [dict(other.conditions) for other in measures if other.name == measure.name]
        keys = dict.fromkeys(key for conditions in namesakes for key in conditions)
        changed = [key for key in keys if len({c.get(key) for c in namesakes}) > 1]
        own = dict(measure.conditions)
        differences = format_conditions({key: own[key] for key in changed if key in own})
        label = f"{measure.name} ({differences})" if differences else measure.name
        labeled.append(replace(measure, label=label))
    return labeled


# --- cells ----------------------------------------------------------------------------------------


def make_cell(measure: Measure, column: Column) -> Cell:
    """Return a column's cell in a row.

    A single run has its standard error; several seeds have their mean and standard deviation.
    """
    rows = [
        (run, row)
        for run in column.runs
        for row in run.rows
        if record_row_to_measure(run, row) == measure
    ]
    if not rows:
        return Cell(blank_reason=find_blank_reason(measure, column.runs[0]))
    values = [math.nan if row["value"] is None else float(row["value"]) for _, row in rows]
    real_vs_real = [row["real_vs_real"] for _, row in rows if row.get("real_vs_real") is not None]
    spread, spread_kind = rows[0][1].get("error"), "s.e."
    if len(values) > 1:
        spread, spread_kind = std_over_seeds(values), "s.d."
    conditions = [format_conditions(conditions_with_data(run, row)) for run, row in rows]
    counts = dict.fromkeys((row.get("conditions") or {}).get("n") for _, row in rows)
    count = ", ".join(f"{k:,}" if isinstance(k, int) else str(k) for k in counts if k)
    is_counted = bool(count) and measure.metric != EFFICIENCY_METRIC
    return Cell(
        value=statistics.fmean(values),
        spread=spread,
        spread_kind="" if spread is None else spread_kind,
        num_seeds=len(values),
        num_missing_seeds=len(column.runs) - len(values),
        tag="/".join(dict.fromkeys(row["tag"] for _, row in rows)),
        real_vs_real=statistics.fmean(real_vs_real) if real_vs_real else None,
        conditions=" | ".join(dict.fromkeys(conditions)),
        n=f"n={count}" if is_counted else "",
    )


def std_over_seeds(values: list[float]) -> float:
    """Return the standard deviation over seeds, with n − 1 in the denominator."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def find_blank_reason(measure: Measure, run: RunRecord) -> str:
    """Return why a run lacks a number in a row."""
    if run.record is None:
        return run.missing_reason
    measures = measures_of_run(run)
    if any(m.name == measure.name for m in measures):
        return OTHER_CONDITIONS_REASON
    is_efficiency = measure.metric == EFFICIENCY_METRIC
    same_metric = [m.name for m in measures if m.metric == measure.metric]
    if same_metric and not is_efficiency:
        return f"{run.model} gives {', '.join(dict.fromkeys(same_metric))} instead"
    if reason := (run.record.get("absent") or {}).get(measure.metric):
        return str(reason)
    if same_metric and is_efficiency:
        return "its run did not log it, or it cannot sample"
    return "its record does not contain it; measure it with `genlab evaluate`"


# --- text -----------------------------------------------------------------------------------------


def format_conditions(conditions: dict[str, str]) -> str:
    """Return conditions as text: "n=1000, split=test"."""
    return ", ".join(f"{key}={value}" for key, value in conditions.items())
