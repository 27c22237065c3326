"""The strangest rows of a table: scores beside all others, and each column's share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from genlab.viz.figures import (
    FONT_SIZE,
    HIDDEN_TAIL,
    canvas_to_picture,
    escape_figure_label,
    make_canvas_and_axes,
)
from genlab.viz.picture import Picture
from genlab.viz.slides import LINE_COLOR

SCORE_COLOR, OUTLIER_COLOR = "#7d8590", "#b3261e"
MAX_COLUMNS_SHOWN = 14  # of the table, those with the largest contributions
MAX_LABEL = 18  # characters of a column's name
NUM_BINS = 60


def plot_outliers(
    scores: np.ndarray,
    threshold: float,
    contributions: np.ndarray,
    cells: Sequence[Sequence[str]],
    columns: Sequence[str],
    row_names: Sequence[str],
    *,
    score_name: str,
) -> Picture:
    """Plot a histogram of scores with the threshold, and the contributions of the first rows.

    Args:
        scores: (N,) of all rows, the lowest first.
        contributions: (K, D) of the first rows.
        cells: the K rows in own units, as text.
        row_names: of the K rows.
    """
    canvas, (histogram, heat) = make_canvas_and_axes(17, 1.8 + 0.36 * len(contributions), 2)
    low, high = float(scores.min()), float(np.quantile(scores, 1 - HIDDEN_TAIL))
    bins = np.linspace(low, high, NUM_BINS)
    histogram.hist(scores, bins, color=SCORE_COLOR, label=f"{len(scores):,} rows")
    shown = scores[: len(contributions)]
    floor = np.full(len(shown), 0.7)
    histogram.plot(shown, floor, "v", color=OUTLIER_COLOR, ms=8, label="the rows at the right")
    num_outliers = int((scores < threshold).sum())
    label = f"threshold {threshold:.4g}: {num_outliers:,} rows below"
    histogram.axvline(threshold, color=OUTLIER_COLOR, ls="--", lw=1.5, label=label)
    histogram.set_yscale("log")
    histogram.set(xlabel=escape_figure_label(score_name), ylabel="rows", title="scores of all rows")
    histogram.legend(fontsize=FONT_SIZE - 1, loc="upper left")
    order = np.argsort(-contributions.sum(0), kind="stable")[:MAX_COLUMNS_SHOWN].tolist()
    values = contributions[:, order]
    image = heat.imshow(values, aspect="auto", cmap="Reds", vmin=0)
    for i, j in np.ndindex(*values.shape):
        color = "white" if values[i, j] > 0.55 * values.max() else "0.15"
        heat.text(j, i, cells[i][order[j]], ha="center", va="center", fontsize=9, color=color)
    names = [
        columns[j] if len(columns[j]) <= MAX_LABEL else f"{columns[j][:MAX_LABEL]}…" for j in order
    ]
    heat.set_xticks(range(len(order)), map(escape_figure_label, names), rotation=40, ha="right")
    heat.set_yticks(range(len(row_names)), [escape_figure_label(name) for name in row_names])
    heat.set(title="the strangest rows: value, and contribution of the column as color")
    heat.set_xticks(np.arange(len(order)) - 0.5, minor=True)
    heat.set_yticks(np.arange(len(values)) - 0.5, minor=True)
    heat.grid(which="minor", color=LINE_COLOR, lw=0.6)
    heat.tick_params(which="minor", length=0)
    bar = canvas.figure.colorbar(image, ax=heat, pad=0.01)
    bar.set_label("gain of the score if the column had its best value", fontsize=FONT_SIZE - 1)
    for axes in (histogram, heat):
        axes.title.set_size(FONT_SIZE + 1)
    hidden = len(columns) - len(order)
    return canvas_to_picture(canvas, f"{hidden} more columns are not shown" if hidden else "")
