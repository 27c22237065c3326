"""Gradient estimators: two computation graphs, and measured variances of the gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.comparison.figures.registry import FigureRun
from genlab.console import track
from genlab.errors import UserError
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, Positive
from genlab.viz.figures import FONT_SIZE, canvas_to_picture, make_canvas_and_axes
from genlab.viz.picture import Picture

COLORS = {"pathwise": "#1f4e9c", "score_function": "#e07b39"}
LABELS = {"pathwise": "pathwise (reparameterized)", "score_function": "score function"}
GRADIENT_COLOR = "#b3261e"
NODE_COLOR, NOISE_COLOR = "#eef2f8", "#fdf1e7"
MEAN = 1.0  # μ of the Gaussian example
SIGMAS = (0.25, 0.5, 1.0, 2.0)
NUM_DRAWS = 100_000  # of z, for each point of the curves


def draw_gradients(
    runs: list[FigureRun],
    *,
    draws: Positive = 200,
    items: Positive = 50,
    seed: Count = 0,
) -> Picture:
    """Return both graphs, the variances for a Gaussian, and those in each run's encoder.

    Args:
        draws: gradients of each run's loss, whose variance is measured.
        items: held-out items that the loss is of.
        seed: of the items and all draws.
    """
    for run in runs:
        if set(COLORS) - set(run.run.model.gradient_estimators):
            raise UserError(
                f"figures: kind=gradients is for models with model.gradient; {run.run.name} does "
                "not have it"
            )
    canvas, axes = make_canvas_and_axes(20, 5.6, 4)
    draw_pathwise_graph(axes[0])
    draw_score_function_graph(axes[1])
    draw_gaussian_variances(axes[2], seed)
    draw_encoder_variances(axes[3], runs, draws=draws, items=items, seed=seed)
    for panel in axes:
        panel.title.set_size(FONT_SIZE + 1)
    return canvas_to_picture(
        canvas,
        f"variance of one-sample gradients: {NUM_DRAWS:,} draws of z for the Gaussian, {draws} of "
        f"the loss of {items} held-out items for the encoder; bars: standard error",
    )


# --- a Gaussian with closed forms -----------------------------------------------------------------


def gaussian_gradient_draws(
    mean: float, sigma: float, n: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return n draws of each estimate of d/dμ E[z²] with z ~ N(μ, σ²), whose value is 2μ.

    Pathwise: d/dμ (μ + σε)² = 2z. Score function: z² (z − μ)/σ².
    """
    z = mean + sigma * torch.randn(n, generator=generator, dtype=torch.float64)
    return {"pathwise": 2 * z, "score_function": z.square() * (z - mean) / sigma**2}


def gaussian_gradient_variances(mean: float, sigma: float) -> dict[str, float]:
    """Return the exact variance of each estimate of d/dμ E[z²] with z ~ N(μ, σ²).

    Var 2z = 4σ²; and with E[z⁴ε²] = μ⁴ + 18μ²σ² + 15σ⁴, Var z²ε/σ = μ⁴/σ² + 14μ² + 15σ².
    """
    return {
        "pathwise": 4 * sigma**2,
        "score_function": mean**4 / sigma**2 + 14 * mean**2 + 15 * sigma**2,
    }


def variance_and_error(values: Tensor) -> tuple[float, float]:
    """Return the variance of values (N,), and its standard error from their fourth moment."""
    centered = values - values.mean()
    second, fourth = centered.square().mean().item(), centered.pow(4).mean().item()
    return second, math.sqrt(max(fourth - second**2, 0.0) / len(values))


def draw_gaussian_variances(axes: Any, seed: int) -> None:
    """Draw measured variances over σ beside their closed forms."""
    generator = torch.Generator().manual_seed(seed)
    fine = np.geomspace(min(SIGMAS), max(SIGMAS), 100)
    for name, color in COLORS.items():
        exact = [gaussian_gradient_variances(MEAN, s)[name] for s in fine]
        axes.plot(fine, exact, color=color, lw=1.6, label=f"{LABELS[name]}: exact")
    for k, sigma in enumerate(SIGMAS):
        found = gaussian_gradient_draws(MEAN, sigma, NUM_DRAWS, generator)
        for name, values in found.items():
            variance, error = variance_and_error(values)
            label = "measured" if k == 0 and name == "pathwise" else None
            style = {"color": COLORS[name], "marker": "o", "ms": 6, "ls": "none", "capsize": 3}
            axes.errorbar([sigma], [variance], yerr=[error], label=label, **style)
    axes.set(xscale="log", yscale="log", xlabel="σ", ylabel="variance of the gradient")
    axes.set_title("∂E[z²]/∂μ for z ~ N(1, σ²)")
    axes.legend(fontsize=10)
    axes.grid(alpha=0.25, which="both")
    axes.set_xticks(SIGMAS, [f"{s:g}" for s in SIGMAS])
    axes.minorticks_off()


# --- the encoder of a trained model ---------------------------------------------------------------


def encoder_gradient_variances(
    run: LoadedRun, estimator: str, *, draws: int, items: int, seed: int
) -> tuple[float, float]:
    """Return the total variance of the encoder's gradient, and its standard error.

    It is Σ_j Var g_j over the parameters of the encoder, of the loss of a few held-out items.
    """
    model = run.model
    batch = run.device.to_device(run.dataset.head("test", items, seed=seed))
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    was, model.gradient = model.gradient, estimator
    torch.manual_seed(seed)
    gradients = []
    try:
        for _ in track(range(draws), f"{estimator} gradients", unit="draws"):
            loss = model.loss(Batch(batch.x, batch.y))["loss"]
            found = torch.autograd.grad(loss, parameters)
            gradients.append(torch.cat([g.flatten() for g in found]).double().cpu())
    finally:
        model.gradient = was
    g = torch.stack(gradients)  # (draws, parameters)
    squares = (g - g.mean(0)).square().sum(1) * (draws / (draws - 1))
    return squares.mean().item(), squares.std().item() / math.sqrt(draws)


def draw_encoder_variances(
    axes: Any, runs: list[FigureRun], *, draws: int, items: int, seed: int
) -> None:
    """Draw the variance of the gradient of each run's encoder, by both estimators."""
    for k, run in enumerate(runs):
        for j, name in enumerate(COLORS):
            variance, error = encoder_gradient_variances(
                run.run, name, draws=draws, items=items, seed=seed
            )
            style = {"color": COLORS[name], "label": LABELS[name] if k == 0 else None}
            bars = axes.bar([k + 0.4 * j - 0.2], [variance], 0.4, yerr=[error], capsize=3, **style)
            axes.bar_label(bars, [f"{variance:.2g}"], fontsize=11, padding=2)
    axes.set_yscale("log")
    axes.margins(y=0.25)
    axes.set_xticks(range(len(runs)), [f"trained by:\n{run.label}" for run in runs])
    axes.set(ylabel="total variance of the gradient", title="the encoder of a VAE")
    axes.legend(fontsize=10, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


# --- graphs ---------------------------------------------------------------------------------------


def draw_node(axes: Any, place: tuple[float, float], text: str, *, kind: str) -> None:
    """Draw a node: "computed" is a box, "drawn" a circle, "noise" a dashed circle."""
    box = {"computed": "square,pad=0.45", "drawn": "circle,pad=0.45", "noise": "circle,pad=0.45"}
    axes.text(
        *place,
        text,
        ha="center",
        va="center",
        fontsize=FONT_SIZE + 3,
        bbox={
            "boxstyle": box[kind],
            "fc": NODE_COLOR if kind == "computed" else NOISE_COLOR,
            "ec": "0.25",
            "ls": "--" if kind == "noise" else "-",
            "lw": 1.4,
        },
        zorder=3,
    )


def draw_arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], *, gradient: bool = False
) -> None:
    """Draw an arrow between nodes; that of a gradient is red, dashed, and bent."""
    style: dict[str, Any] = {"arrowstyle": "-|>", "lw": 1.6, "shrinkA": 28, "shrinkB": 34}
    if gradient:
        style |= {"color": GRADIENT_COLOR, "ls": "--", "connectionstyle": "arc3,rad=0.42"}
    else:
        style |= {"color": "0.25"}
    axes.annotate("", end, start, arrowprops=style)


def prepare_graph_axes(axes: Any, title: str) -> None:
    """Set the size and the title of a graph without axes."""
    axes.set(xlim=(0, 10), ylim=(0, 10), title=title)
    axes.axis("off")


def draw_pathwise_graph(axes: Any) -> None:
    """Draw z = μ + σε: the gradient passes through z to the encoder's parameters."""
    prepare_graph_axes(axes, "reparameterized: the gradient passes z")
    phi, moments, z, f, eps = (1.4, 1.2), (1.4, 4.6), (5.4, 6.6), (8.7, 8.8), (8.4, 3.6)
    for start, end in ((phi, moments), (moments, z), (eps, z), (z, f)):
        draw_arrow(axes, start, end)
    for start, end in ((f, z), (z, moments), (moments, phi)):
        draw_arrow(axes, start, end, gradient=True)
    draw_node(axes, phi, "φ, x", kind="computed")
    draw_node(axes, moments, "μ, σ", kind="computed")
    draw_node(axes, z, "z = μ + σε", kind="computed")
    draw_node(axes, eps, "ε", kind="noise")
    draw_node(axes, f, "f(z)", kind="computed")
    axes.text(8.4, 1.9, "ε ~ N(0, 1)", ha="center", fontsize=FONT_SIZE)
    axes.text(3.2, 0.3, "dashed: gradient", fontsize=FONT_SIZE, color=GRADIENT_COLOR)
    axes.text(0.1, 9.3, "∇ = f′(z) ∂z/∂φ", fontsize=FONT_SIZE + 2, color=GRADIENT_COLOR)


def draw_score_function_graph(axes: Any) -> None:
    """Draw z ~ q: z is drawn, so that the gradient goes through log q(z) beside it."""
    prepare_graph_axes(axes, "drawn: the gradient stops at z")
    phi, moments, z, f, log_q = (1.4, 1.2), (1.4, 4.6), (5.2, 6.6), (8.7, 8.8), (6.6, 2.4)
    for start, end in ((phi, moments), (moments, z), (z, f), (moments, log_q), (z, log_q)):
        draw_arrow(axes, start, end)
    for start, end in ((log_q, moments), (moments, phi)):
        draw_arrow(axes, start, end, gradient=True)
    draw_node(axes, phi, "φ, x", kind="computed")
    draw_node(axes, moments, "μ, σ", kind="computed")
    draw_node(axes, z, "z ~ q", kind="drawn")
    draw_node(axes, log_q, "log q(z)", kind="computed")
    draw_node(axes, f, "f(z)", kind="computed")
    axes.text(3.2, 0.3, "dashed: gradient", fontsize=FONT_SIZE, color=GRADIENT_COLOR)
    axes.text(0.1, 9.3, "∇ = f(z) ∂log q(z)/∂φ", fontsize=FONT_SIZE + 2, color=GRADIENT_COLOR)
