"""Charts as SVG images that follow the page's light or dark theme.

Labels are plain text: mathematics and leading underscores are ordinary characters.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genlab.comparison.table import Cell, Column, Comparison
from genlab.metrics.sections import EFFICIENCY_METRIC
from genlab.untrusted.text import to_printable_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = (
    "#4c78a8",
    "#e07b39",
    "#4f9d69",
    "#c8504f",
    "#8f6bb3",
    "#3f9fa8",
    "#b8901f",
    "#a0634b",
    "#d46a9f",
    "#7d8590",
)
# Placeholders in the drawing, which the page's own text and line colors replace.
INK_COLOR, LINE_COLOR = "#010203", "#040506"
SVG_STYLE = (
    ":root{--ink:#3c4350;--line:#c9ced6}"
    "@media(prefers-color-scheme:dark){:root{--ink:#c3c9d3;--line:#474e59}}"
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif!important}"
)
PLOT_OPTIONS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "genlab",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "text.color": INK_COLOR,
    "axes.labelcolor": INK_COLOR,
    "xtick.labelcolor": INK_COLOR,
    "ytick.labelcolor": INK_COLOR,
    "axes.edgecolor": LINE_COLOR,
    "xtick.color": LINE_COLOR,
    "ytick.color": LINE_COLOR,
    "grid.color": LINE_COLOR,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.5,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.labelsize": 9,
    "axes.grid": True,
}
FORMULA_SIZE = 13  # of letters, in points
SMALL_CHART_INCHES = (3.7, 2.35)
SCATTER_INCHES = (7.2, 4.0)
NOT_CURVES = {"step", "seconds", "seconds_left", "items_per_s", "memory_mb", "evaluation"}
MAX_CURVES = 6
MAX_CURVE_POINTS = 300  # longer curves are averaged
MAX_LABEL_CHARS = 34
COST_ROWS = ("sampling_seconds", "network_evaluations", "training_seconds")  # most wanted first
LOG_SCALE_RATIO = 20  # of the largest to the smallest value, from which an axis is logarithmic


@dataclass(frozen=True)
class Chart:
    """An image and its caption."""

    source: str  # a data URI
    caption: str


@contextmanager
def open_svg_axes(width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """Yield the axes of a figure, and a list that receives the figure's data URI at the end.

    Args:
        width: in inches.
        height: in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    with mpl.rc_context(PLOT_OPTIONS), warnings.catch_warnings():
        # The font that measures text lacks some glyphs, which the reader's font has.
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            figure = Figure(figsize=(width, height), layout="constrained")
            source: list[str] = []
            yield figure.add_subplot(), source
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        finally:
            logger.setLevel(level)
    source.append(encode_svg(file.getvalue()))


def column_color(i: int) -> str:
    """Return the color of column i."""
    return COLORS[i % len(COLORS)]


def shorten_label(text: str, length: int = MAX_LABEL_CHARS) -> str:
    """Return a label of a chart, cut to `length` characters."""
    text = to_printable_text(text)
    if len(text) > length:
        text = text[: length - 1] + "…"
    # matplotlib hides labels with a leading underscore from a legend.
    return "\u200b" + text if text.startswith("_") else text


def format_tick(value: float, _: Any = None) -> str:
    """Return the text of a tick: 0.5, 20, 5k, 1.5M, 1e-09."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def average_curve_to_fewer_points(
    x: Sequence[float], y: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return a curve with up to MAX_CURVE_POINTS points, each the mean of several."""
    size = math.ceil(len(x) / MAX_CURVE_POINTS) or 1
    starts = range(0, len(x), size)
    xs = [x[min(i + size, len(x)) - 1] for i in starts]
    return xs, [statistics.fmean(y[i : i + size]) for i in starts]


def read_curve(log: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return the steps and the finite values of a logged key."""
    pairs = [(line["step"], line[key]) for line in log if is_finite_number(line.get(key))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def is_finite_number(value: Any) -> bool:
    """Whether a logged value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def draw_formula(tex: str) -> Chart:
    """Return a formula as an image.

    Args:
        tex: as matplotlib draws it, without dollar signs; lines are separated by a line break.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = [line.strip() for line in tex.strip().splitlines() if line.strip()]
    options = {**PLOT_OPTIONS, "svg.fonttype": "path", "text.parse_math": True}
    with mpl.rc_context({**options, "mathtext.fontset": "dejavuserif"}):
        figure = Figure(figsize=(0.1, 0.1))
        text = "\n".join(f"${line}$" for line in lines)
        figure.text(0, 0, text, fontsize=FORMULA_SIZE, linespacing=2.0)
        file = io.StringIO()
        metadata: dict[str, Any] = {"Date": None, "Creator": None}
        figure.savefig(file, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.05)
    return Chart(encode_svg(file.getvalue()), " ".join(lines))


def encode_svg(svg: str) -> str:
    """Return a drawing as a data URI, with the page's own text and line colors."""
    svg = svg[svg.index("<svg") :]
    svg = svg.replace(INK_COLOR, "var(--ink)").replace(LINE_COLOR, "var(--line)")
    svg = svg.replace("<defs>", f"<style>{SVG_STYLE}</style><defs>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


# --- learning curves ------------------------------------------------------------------------------


def plot_loss_curves(column: Column) -> Chart | None:
    """Return a chart of a model's losses over training, one line per seed.

    It shows the loss, and those of its parts that are of a similar size.
    """
    keys = choose_loss_keys(column.runs[0].log)
    if not keys:
        return None
    has_seeds = len(column.runs) > 1
    with open_svg_axes(*SMALL_CHART_INCHES) as (axes, source):
        values: list[float] = []
        for i, key in enumerate(keys):
            for n, run in enumerate(column.runs):
                x, y = average_curve_to_fewer_points(*read_curve(run.log, key))
                axes.plot(
                    x,
                    y,
                    color=column_color(i),
                    lw=1.0 if has_seeds else 1.5,
                    alpha=0.9 if n == 0 else 0.5,
                    label=shorten_label(key, 22) if n == 0 else "_",
                    zorder=3 - i / 10,
                )
                # The first points are far off, and would set the scale.
                values += y[max(1, len(y) // 25) :] if len(y) > 3 else y
        set_y_limits_without_outliers(axes, values)
        format_step_axis(axes)
        axes.yaxis.set_major_formatter(format_tick)
        if len(keys) > 1:
            axes.legend(
                fontsize=8.5,
                loc="lower center",
                bbox_to_anchor=(0.45, 1.0),
                ncols=3,
                handlelength=1.2,
                columnspacing=1.0,
            )
    return Chart(source[0], ", ".join(keys))


def choose_loss_keys(log: list[dict[str, Any]]) -> list[str]:
    """Return the logged losses to plot: the loss, and parts within a factor of 20 of it."""
    keys = dict.fromkeys(key for line in log for key in line)
    sizes: dict[str, float] = {}
    for key in keys:
        if key in NOT_CURVES or key.startswith(("lr/", "grad_norm/")):
            continue
        _, y = read_curve(log, key)
        if len(y) > 1:
            sizes[key] = statistics.median(map(abs, y))
    main = [key for key in sizes if key == "loss" or key.startswith("loss/")]
    if not main:
        return []
    main += [key for key in sizes if key == "validation/loss"]
    largest = max(sizes[key] for key in main)
    parts = [k for k in sizes if k not in main and largest / 20 <= sizes[k] <= largest * 20]
    return (main + parts)[:MAX_CURVES]


def format_step_axis(axes: Axes) -> None:
    """Label the x axis as training steps, with few ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(format_tick)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def set_y_limits_without_outliers(axes: Axes, values: list[float]) -> None:
    """Show the middle 98 % of the values: a spike at the start would flatten the rest."""
    values = sorted(values)
    low, high = values[len(values) // 100], values[-1 - len(values) // 100]
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def plot_evaluation_curves(columns: list[Column]) -> list[Chart]:
    """Return a chart for each number of the evaluations in training, one line per run."""
    logs = [
        (j, evaluation_records_of_log(run.log)) for j, c in enumerate(columns) for run in c.runs
    ]
    names = dict.fromkeys(name for _, log in logs for line in log for name in line)
    charts = []
    for name in names:
        curves = [(j, read_curve(log, name)) for j, log in logs]
        curves = [(j, (x, y)) for j, (x, y) in curves if len(x) > 1]
        if name == "step" or not curves:
            continue
        with open_svg_axes(*SMALL_CHART_INCHES) as (axes, source):
            for j, (x, y) in curves:
                axes.plot(x, y, color=column_color(j), marker="o", ms=2.5)
            format_step_axis(axes)
        charts.append(Chart(source[0], to_printable_text(name)))
    return charts


def evaluation_records_of_log(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the numbers of the evaluations in a log, with their steps."""
    return [
        {"step": line["step"], **line["evaluation"]}
        for line in log
        if isinstance(line.get("evaluation"), dict)
    ]


# --- quality against cost -------------------------------------------------------------------------


def plot_quality_against_cost(comparison: Comparison) -> Chart | None:
    """Return a scatter plot of quality over cost; None if there are too few numbers.

    The quality is the first that most models have, the cost the first that most of these have.
    """
    rows = choose_cost_and_quality_rows(comparison)
    if rows is None:
        return None
    cost_row, quality_row = rows
    shown = sorted(
        columns_with_number_in_row(comparison, cost_row)
        & columns_with_number_in_row(comparison, quality_row)
    )
    cost, quality = comparison.measures[cost_row], comparison.measures[quality_row]
    cost_cells = [comparison.cells[cost_row, j] for j in shown]
    quality_cells = [comparison.cells[quality_row, j] for j in shown]
    with open_svg_axes(*SCATTER_INCHES) as (axes, source):
        points = []
        for j, cost_cell, quality_cell in zip(shown, cost_cells, quality_cells, strict=True):
            x, y = cost_cell.value or 0.0, quality_cell.value or 0.0
            axes.errorbar(
                x,
                y,
                xerr=spread_if_finite(cost_cell),
                yerr=spread_if_finite(quality_cell),
                fmt="o",
                ms=8,
                color=column_color(j),
                lw=1.3,
                capsize=3,
            )
            points.append((shorten_label(comparison.columns[j].label), x, y))
        for axis, measure, cells in (
            (axes.xaxis, cost, cost_cells),
            (axes.yaxis, quality, quality_cells),
        ):
            set_log_scale_if_wide(axis, [cell.value or 0.0 for cell in cells])
            label = f"{measure.label} [{measure.unit}]" if measure.unit else measure.label
            axis.set_label_text(f"{shorten_label(label, 70)}  {measure.better_arrow}")
        axes.margins(0.14, 0.18)
        annotate_points(axes, points)
    caption = (
        f"{quality.label} ({quality.better} is better) against {cost.label}: the first measure of "
        "quality that most models have, and the first cost that most of these have. Bars: "
        "standard error, or standard deviation over seeds."
    )
    missing = [c.label for j, c in enumerate(comparison.columns) if j not in shown]
    if missing:
        caption += f" Without both numbers: {', '.join(missing)}."
    return Chart(source[0], caption)


def choose_cost_and_quality_rows(comparison: Comparison) -> tuple[int, int] | None:
    """Return the rows of a cost and of a quality that at least two models have, or None."""
    directed = {i: m for i, m in enumerate(comparison.measures) if m.better in ("lower", "higher")}
    columns_of = {i: columns_with_number_in_row(comparison, i) for i in directed}
    qualities = [
        i for i, m in directed.items() if m.metric != EFFICIENCY_METRIC and len(columns_of[i]) > 1
    ]
    if not qualities:
        return None
    quality = max(qualities, key=lambda i: (len(columns_of[i]), -i))
    costs = [i for i, m in directed.items() if m.name in COST_ROWS]
    shared = {i: len(columns_of[i] & columns_of[quality]) for i in costs}
    costs = [i for i in costs if shared[i] > 1]
    if not costs:
        return None
    rank = {i: COST_ROWS.index(comparison.measures[i].name) for i in costs}
    return max(costs, key=lambda i: (shared[i], -rank[i])), quality


def columns_with_number_in_row(comparison: Comparison, i: int) -> set[int]:
    """Return the columns that have a finite number in row i."""
    return {j for j, cell in enumerate(comparison.row_cells(i)) if is_finite_number(cell.value)}


def spread_if_finite(cell: Cell) -> float | None:
    """Return a cell's spread, or None if it is not finite."""
    return cell.spread if is_finite_number(cell.spread) else None


def set_log_scale_if_wide(axis: Any, values: list[float]) -> None:
    """Make an axis logarithmic if its values span more than a factor of LOG_SCALE_RATIO."""
    from matplotlib.ticker import NullFormatter

    if min(values) > 0 and max(values) > LOG_SCALE_RATIO * min(values):
        (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(format_tick)


def annotate_points(axes: Axes, points: list[tuple[str, float, float]]) -> None:
    """Write labels beside points, moved up where two labels would overlap.

    The labels of points in the right half are to their left.

    Args:
        points: (label, x, y) of each.
    """
    from matplotlib.figure import Figure

    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    placed: list[tuple[bool, float, float]] = []
    box = axes.get_window_extent()

    def overlaps(is_left: bool, x: float, y: float) -> bool:
        return any(
            other_left == is_left and abs(y - other_y) < 16 and abs(x - other_x) < 0.35 * box.width
            for other_left, other_x, other_y in placed
        )

    for label, x, y in sorted(points, key=lambda point: point[2]):
        pixel_x, pixel_y = axes.transData.transform((x, y))
        is_left = pixel_x > (box.x0 + box.x1) / 2
        shift = 0.0
        while overlaps(is_left, pixel_x, pixel_y + shift):
            shift += 4
        placed.append((is_left, pixel_x, pixel_y + shift))
        points_per_pixel = 72 / figure.dpi
        axes.annotate(
            label,
            (x, y),
            xytext=(-9 if is_left else 9, shift * points_per_pixel + 3),
            textcoords="offset points",
            ha="right" if is_left else "left",
            va="bottom",
        )
