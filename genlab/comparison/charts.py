"""Curves and scatter pictures as SVG that follows the reader's light or dark page; every label is taken as it stands."""

from __future__ import annotations

import base64
import io
import logging
import math
import statistics
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from genlab.comparison.run_records import plain_value
from genlab.comparison.table import Column, Comparison

COLOURS = (
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
INK, LINE = "#010203", "#040506"  # drawn with these; the page's own colours take their place
STYLE = (
    ":root{--ink:#3c4350;--line:#c9ced6}@media(prefers-color-scheme:dark){:root{--ink:#c3c9d3;--line:#474e59}}"
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif!important}"
)
NO_CURVE = {"step", "seconds", "seconds_left", "items_per_s", "memory_mb", "evaluation"}
POINTS = 300  # of a curve, at most: more are averaged
COSTS = ("sampling_seconds", "network_evaluations", "training_seconds")


@dataclass(frozen=True)
class Chart:
    """A picture and the words that say what it shows."""

    source: str  # a data URI
    caption: str


@contextmanager
def canvas(width: float, height: float):
    """Yield a figure's axes and a list that receives the figure's data URI; dollars and underscores are just that."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    options = {
        "svg.fonttype": "none", "svg.hashsalt": "genlab", "text.parse_math": False, "axes.formatter.use_mathtext": False,
        "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.edgecolor": LINE,
        "xtick.color": LINE, "ytick.color": LINE, "grid.color": LINE, "grid.linewidth": 0.5, "grid.alpha": 0.5, "font.size": 9,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.4,
        "axes.facecolor": "none", "figure.facecolor": "none", "axes.labelsize": 9, "axes.grid": True,
    }  # fmt: skip
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    with mpl.rc_context(options), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # glyphs that the font for measuring text has not: the reader's has
        log.setLevel(logging.ERROR)
        try:
            figure = Figure(figsize=(width, height), layout="constrained")
            source: list[str] = []
            yield figure.add_subplot(), source
            written = io.StringIO()
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
        finally:
            log.setLevel(level)
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    text = text.replace("<defs>", f"<style>{STYLE}</style><defs>", 1)
    source.append("data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode())


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def cut(text: str, length: int = 34) -> str:
    """Return a label short enough for a picture; its leading underscore would hide it from a legend."""
    text = plain_value(text)
    text = text if len(text) <= length else text[: length - 1] + "…"
    return "\u200b" + text if text.startswith("_") else text


def thousands(value: float, _: Any = None) -> str:
    """Return a tick's text: 0.5, 20, 5k, 1.5M, 1e-09."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return a curve with at most POINTS points, the mean of those that each stands for."""
    size = math.ceil(len(x) / POINTS) or 1
    parts = range(0, len(x), size)
    return [x[min(i + size, len(x)) - 1] for i in parts], [
        statistics.fmean(y[i : i + size]) for i in parts
    ]


def curve(history: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return steps and finite values of a logged key."""
    pairs = [(line["step"], line[key]) for line in history if finite(line.get(key))]
    return [s for s, _ in pairs], [v for _, v in pairs]


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- learning curves --------------------------------------------------------------------------------------------------


def losses(column: Column) -> Chart | None:
    """Return a model's losses over training: the loss, and its parts of a like size; a thin line each seed."""
    history = column.entries[0].history
    logged = dict.fromkeys(k for line in history for k in line)
    curves = {
        k: curve(history, k)
        for k in logged
        if k not in NO_CURVE and not k.startswith(("lr/", "grad_norm/"))
    }
    size = {k: statistics.median(map(abs, y)) for k, (_, y) in curves.items() if len(y) > 1}
    main = [k for k in size if k == "loss" or k.startswith("loss/")]
    if not main:
        return None
    largest = max(size[k] for k in main)
    shown = main + [k for k in size if k not in main and largest / 20 <= size[k] <= largest * 20]
    with canvas(3.7, 2.35) as (axes, source):
        every: list[float] = []
        for i, key in enumerate(shown[:6]):
            for n, entry in enumerate(column.entries):
                x, y = thinned(*curve(entry.history, key))
                axes.plot(x, y, color=colour(i), lw=1.0 if len(column.entries) > 1 else 1.5, alpha=0.9 if n == 0 else 0.5,
                          label=cut(key, 22) if n == 0 else "_", zorder=3 - i / 10)  # fmt: skip
                every += y[max(1, len(y) // 25) :] if len(y) > 3 else y
        robust_limits(axes, every)
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(thousands)
        axes.xaxis.set_major_locator(few_ticks())
        axes.yaxis.set_major_formatter(thousands)
        if len(shown) > 1:
            axes.legend(fontsize=7.5, loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3,
                        handlelength=1.2, columnspacing=1.0)  # fmt: skip
    return Chart(source[0], ", ".join(shown[:6]))


def few_ticks():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True)


def robust_limits(axes: Any, values: list[float]) -> None:
    """Show the middle 98 % of the values: a spike at the start would flatten the rest."""
    values = sorted(values)
    low, high = values[len(values) // 100], values[-1 - len(values) // 100]
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def evaluations(columns: list[Column]) -> list[Chart]:
    """Return what training's own evaluations gave, a picture for each number that changed, a line each model."""
    names = dict.fromkeys(
        k
        for c in columns
        for e in c.entries
        for line in e.history
        for k in (line.get("evaluation") or {})
    )
    charts = []
    for name in names:
        lines = []
        for j, column in enumerate(columns):
            for entry in column.entries:
                found = [
                    {"step": h["step"], **h["evaluation"]}
                    for h in entry.history
                    if isinstance(h.get("evaluation"), dict)
                ]
                if len((xy := curve(found, name))[0]) > 1:
                    lines.append((j, xy))
        if not lines:
            continue
        with canvas(3.7, 2.35) as (axes, source):
            for j, (x, y) in lines:
                axes.plot(x, y, color=colour(j), marker="o", ms=2.5)
            axes.set_xlabel("step")
            axes.xaxis.set_major_formatter(thousands)
            axes.xaxis.set_major_locator(few_ticks())
        charts.append(Chart(source[0], plain_value(name)))
    return charts


# --- quality against cost ---------------------------------------------------------------------------------------------


def against_cost(found: Comparison) -> Chart | None:
    """Return quality against cost: the first quality that most models have, over the first cost that most of them have."""
    ranked = {i: m for i, m in enumerate(found.measures) if m.better in ("lower", "higher")}
    costs = sorted(
        (i for i, m in ranked.items() if m.name in COSTS),
        key=lambda i: COSTS.index(found.measures[i].name),
    )
    there = lambda i: {j for j, c in enumerate(found.row(i)) if finite(c.value)}  # noqa: E731
    qualities = [i for i, m in ranked.items() if m.metric != "cost" and len(there(i)) > 1]
    if not qualities:
        return None
    y = max(qualities, key=lambda i: (len(there(i)), -i))
    costs = [i for i in costs if len(there(i) & there(y)) > 1]
    if not costs:
        return None
    x = max(costs, key=lambda i: (len(there(i) & there(y)), -costs.index(i)))
    shown = sorted(there(x) & there(y))
    across, up = found.measures[x], found.measures[y]
    with canvas(7.2, 4.0) as (axes, source):
        points = [(found.cells[x, j], found.cells[y, j]) for j in shown]
        for j, (a, b) in zip(shown, points, strict=True):
            bar = lambda c: c.spread if finite(c.spread) else None  # noqa: E731
            axes.errorbar(
                a.value,
                b.value,
                yerr=bar(b),
                xerr=bar(a),
                fmt="o",
                ms=8,
                color=colour(j),
                lw=1.3,
                capsize=3,
            )
        for axis, measure, cells in zip(
            (axes.xaxis, axes.yaxis), (across, up), zip(*points, strict=True), strict=True
        ):
            scale_axis(axis, [c.value for c in cells])
            words = f"{measure.label} [{measure.unit}]" if measure.unit else measure.label
            axis.set_label_text(cut(words, 70) + f"  {measure.arrow}")
        axes.margins(0.14, 0.18)
        names(
            axes,
            [
                (cut(found.columns[j].label), a.value, b.value)
                for j, (a, b) in zip(shown, points, strict=True)
            ],
        )
    left = [c.label for j, c in enumerate(found.columns) if j not in shown]
    caption = (
        f"{up.label} ({up.better} is better) against {across.label}: of the measures of quality the first that most models "
        "have, and the first cost that most of these have. Bars: standard error, or deviation over seeds."
    )
    return Chart(
        source[0], caption + (f" Without both numbers: {', '.join(left)}." if left else "")
    )


def scale_axis(axis: Any, values: list[float]) -> None:
    """Make an axis logarithmic where its values span more than a factor of 20."""
    from matplotlib.ticker import NullFormatter

    if min(values) > 0 and max(values) > 20 * min(values):
        (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(thousands)


def names(axes: Any, points: list[tuple[str, float, float]]) -> None:
    """Write names beside points, to the left of those on the right half, a line apart where they would meet."""
    axes.figure.draw_without_rendering()
    placed: list[tuple[bool, float, float]] = []
    box = axes.get_window_extent()
    for name, x, y in sorted(points, key=lambda p: p[2]):
        px, py = axes.transData.transform((x, y))
        left = px > (box.x0 + box.x1) / 2
        shift = 0.0
        while any(
            l == left and abs(py + shift - v) < 16 and abs(px - u) < 0.35 * box.width
            for l, u, v in placed
        ):  # noqa: E741
            shift += 4
        placed.append((left, px, py + shift))
        scale = 72 / axes.figure.dpi
        axes.annotate(name, (x, y), xytext=(-9 if left else 9, shift * scale + 3), textcoords="offset points",
                      ha="right" if left else "left", va="bottom")  # fmt: skip
