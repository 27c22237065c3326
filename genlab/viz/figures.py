"""Matplotlib figures without a display: create, fill and save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from genlab.viz import image_grids

DPI = 100
HISTOGRAM_BINS = 60
HIDDEN_TAIL = 0.002  # fraction of the lowest values left out, which would squeeze the histogram


def make_figure(width: int, height: int, panels: int = 1) -> tuple[Any, Any]:
    """Return a canvas of width × height in hundreds of pixels, and its axes side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(width, height), dpi=DPI, layout="constrained"))
    return canvas, canvas.figure.subplots(1, panels, squeeze=False)[0]


def save_figure(canvas: Any, path: Path) -> Path:
    """Write a canvas as a PNG file, and return its path."""
    canvas.draw()
    return image_grids.save_png(np.asarray(canvas.buffer_rgba())[..., :3].copy(), path)


def plot_histograms(axes: Any, values: dict[str, Tensor], label: str) -> None:
    """Draw histograms of named values (N,) over the same bins, without the lowest 0.2%."""
    everything = np.concatenate([part.numpy() for part in values.values()])
    if len(everything) > 1:
        low, high = np.quantile(everything, [HIDDEN_TAIL, 1])
    else:
        low, high = everything.min() - 1, everything.max() + 1
    bins = np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS)
    for name, part in values.items():
        axes.hist(part.numpy(), bins=bins, alpha=0.6, density=True, label=name)
    axes.set_xlabel(label)
    axes.set_yticks([])
    axes.legend(fontsize=8)
