"""The kinds of figures of a comparison, and what each receives.

A new kind is a file of this folder with a function (runs, **options) -> Picture and a line in
FIGURE_KINDS. The options are those that the YAML of a comparison sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

from genlab.comparison.run_records import RunRecord
from genlab.comparison.table import Comparison
from genlab.errors import UserError, did_you_mean
from genlab.runs.loaded_run import LoadedRun
from genlab.viz.picture import Picture
from genlab.viz.slides import TableLine

# kind -> "module:function" of the drawing, without torch until a figure is drawn
FIGURE_KINDS = {
    "panels": "panels:draw_panels",
    "pictures": "record_pictures:draw_pictures",
    "outputs": "item_outputs:draw_outputs",
    "groups": "class_groups:draw_groups",
    "decision": "decision_boundary:draw_decision",
    "gradients": "gradient_estimators:draw_gradients",
}


@dataclass
class FigureRun:
    """A run of a comparison, as figures receive it.

    Attributes:
        label: its name in the comparison.
        record: its numbers.
        load: returns the run with its model, and the options of its sampler as `sample` takes
            them; it is called once, when a figure needs the model.
        comparison: the table, for the numbers of the run's column.
    """

    label: str
    record: RunRecord
    load: Callable[[], tuple[LoadedRun, dict[str, Any]]]
    comparison: Comparison

    @cached_property
    def run_and_sampler(self) -> tuple[LoadedRun, dict[str, Any]]:
        """The run with its model, and the options of its sampler."""
        return self.load()

    @property
    def run(self) -> LoadedRun:
        """The run with its model."""
        return self.run_and_sampler[0]

    @property
    def sampler(self) -> dict[str, Any]:
        """The options of the sampler, as `sample` takes them."""
        return self.run_and_sampler[1]

    @property
    def column(self) -> int:
        """The run's column in the table."""
        columns = self.comparison.columns
        return next(j for j, column in enumerate(columns) if self.record in column.runs)


def find_figure_function(kind: str, name: str) -> Callable[..., Picture]:
    """Return the function that draws a kind of figure.

    Args:
        name: of the figure, for the message.

    Raises:
        UserError: the kind does not exist.
    """
    if kind not in FIGURE_KINDS:
        near = did_you_mean(kind, FIGURE_KINDS)
        raise UserError(
            f"figures.{name}.kind={kind}: there is no such kind of figure{near}; "
            f"there are {', '.join(FIGURE_KINDS)}"
        )
    module, _, function = FIGURE_KINDS[kind].partition(":")
    drawing: Callable[..., Picture] = getattr(
        import_module(f"genlab.comparison.figures.{module}"), function
    )
    return drawing


def make_table_lines(
    runs: Sequence[FigureRun],
    numbers: Sequence[str],
    *,
    before: Sequence[str] = (),
    data: bool = False,
) -> list[TableLine]:
    """Return lines with the numbers of each run, the best in bold.

    Args:
        numbers: names of rows of the table, without the feature space that ends them: "frechet",
            "training_seconds".
        before: texts of columns that come before those of the runs.
        data: the first of the columns is the data, which has the real-vs-real numbers.

    Raises:
        UserError: none of the runs has a number of that name.
    """
    lines = []
    comparison = runs[0].comparison
    for number in numbers:
        rows = [
            i
            for i, measure in enumerate(comparison.measures)
            if measure.name == number or measure.name.startswith(f"{number}_")
        ]
        rows = [i for i in rows if comparison.measures[i].name == comparison.measures[rows[0]].name]
        if not rows:
            known = dict.fromkeys(measure.name for measure in comparison.measures)
            raise UserError(
                f"figures: no run has the number {number}{did_you_mean(number, known)}; the table "
                f"has {', '.join(known)}"
            )
        texts, best = [*before], set()
        if data:
            texts.append(comparison.real_vs_real_text(rows[0]))
        for k, run in enumerate(runs, len(texts)):
            cells = [comparison.cells[i, run.column] for i in rows]
            cell = next((cell for cell in cells if cell.value is not None), None)
            texts.append("–" if cell is None else cell.format_text())
            if cell is not None and cell.tag == "bound":
                texts[-1] += " (bound)"
            if cell is not None and cell.is_best:
                best.add(k)
        measure = comparison.measures[rows[0]]
        unit = f" [{measure.unit}]" if measure.unit else ""
        words = number if number.startswith("L_") else number.replace("_", " ")
        name = f"{words}{unit} {measure.better_arrow}".strip()
        lines.append(TableLine(name, texts, frozenset(best)))
    return lines
