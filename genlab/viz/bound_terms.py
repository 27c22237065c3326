"""The curve of a diffusion model's bound over the noise levels."""

from __future__ import annotations

import math

import numpy as np

from genlab.abilities import BoundTerms
from genlab.viz.figures import FONT_SIZE, canvas_to_picture, make_canvas_and_axes
from genlab.viz.picture import Picture

CURVE_COLOR, LAST_COLOR, PRIOR_COLOR = "#1f4e9c", "#c8504f", "#4f9d69"


def plot_bound_terms(terms: BoundTerms, unit: str = "nats") -> Picture:
    """Plot the mean of L_{t−1} over t, with L_0 and L_T, and the sum of the terms up to t.

    Bars are standard errors of the mean over items.
    """
    canvas, (curve, total) = make_canvas_and_axes(13, 5.2, 2)
    borders = terms.borders.numpy()
    widths = np.diff(borders)
    # a stratum k has the times t = borders[k] + 1 … borders[k + 1] of the steps x_t → x_{t−1}
    t = (borders[:-1] + borders[1:] - 1) / 2 + 1
    per_step = terms.steps.numpy() / widths
    last_time = int(borders[-1])
    n = len(per_step)
    ends = {
        "$L_0$ = −log p(x₀ | x₁)": (1.0, terms.reconstruction.numpy(), LAST_COLOR, "s"),
        "$L_T$ = KL(q($x_T$ | x₀) ‖ p($x_T$))": (last_time, terms.prior.numpy(), PRIOR_COLOR, "D"),
    }
    mean, error = per_step.mean(0), per_step.std(0, ddof=1) / math.sqrt(n) if n > 1 else None
    curve.errorbar(
        t,
        mean,
        yerr=error,
        color=CURVE_COLOR,
        marker="o",
        ms=4,
        lw=1.6,
        capsize=2,
        label="$L_{t-1}$ of one step, mean of a range of t",
    )
    for label, (time, values, color, marker) in ends.items():
        value = values.mean()
        spread = values.std(ddof=1) / math.sqrt(n) if n > 1 else None
        text = f"{label}: {value:.4g} {unit}"
        style = {"color": color, "marker": marker, "ms": 9, "ls": "none"}
        if value > 0:
            curve.errorbar([time], [value], yerr=spread, capsize=3, label=text, **style)
        else:  # a density may be above 1; the axis is logarithmic
            curve.plot([], [], label=f"{text}, not on this axis", **style)
    curve.set(xscale="log", yscale="log")
    curve.set(xlabel="t", ylabel=f"term of the bound [{unit}]", title="the terms")
    curve.legend(fontsize=FONT_SIZE - 1, loc="best")
    cumulative = terms.reconstruction.numpy()[:, None] + terms.steps.numpy().cumsum(1)
    ends_of_ranges = borders[1:].astype(float)
    middle, spread = cumulative.mean(0), cumulative.std(0, ddof=1) / math.sqrt(n) if n > 1 else 0
    total.plot(
        ends_of_ranges,
        middle,
        color=CURVE_COLOR,
        marker="o",
        ms=4,
        lw=1.6,
        label="$L_0 + L_1 + … + L_{t-1}$",
    )
    total.fill_between(
        ends_of_ranges,
        middle - spread,
        middle + spread,
        color=CURVE_COLOR,
        alpha=0.2,
        label="± standard error",
    )
    bound = terms.total.numpy()
    bound_error = f" ± {bound.std(ddof=1) / math.sqrt(n):.2g}" if n > 1 else ""
    total.axhline(
        bound.mean(),
        color="0.3",
        ls="--",
        lw=1.2,
        label=f"the bound: {bound.mean():.4g}{bound_error} {unit}",
    )
    total.set_xscale("log")
    total.set(xlabel="t", ylabel=f"sum of the terms [{unit}]", title="their sum")
    total.legend(fontsize=FONT_SIZE - 1, loc="best")
    for axes in (curve, total):
        axes.grid(alpha=0.25)
        axes.title.set_size(FONT_SIZE + 1)
    return canvas_to_picture(canvas, f"{n} held-out items, bars: standard error of the mean")
