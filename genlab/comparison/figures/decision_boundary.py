"""Decision boundaries: a classifier p(y|x) beside generative models' densities p(x|y)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.comparison.figures.registry import FigureRun
from genlab.errors import UserError
from genlab.metrics.base import binomial_standard_error
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, Positive
from genlab.viz.figures import FONT_SIZE, canvas_to_picture, make_canvas_and_axes
from genlab.viz.picture import Picture

Classifier = Literal["logistic_regression", "neural_network"]
NAMES: dict[Classifier, str] = {
    "logistic_regression": "discriminative: logistic regression",
    "neural_network": "discriminative: neural network",
}
CLASS_COLORS = ("#1f4e9c", "#e07b39", "#4f9d69", "#8f6bb3", "#b8901f", "#3f9fa8", "#d46a9f")
GRID_SIDE = 160  # points along each axis of the maps
MARGIN = 0.55  # around the data, as a fraction of its extent
POINTS_SHOWN = 400
MAX_ITER = 2000  # of scikit-learn's optimizers
# contours of p(x) enclose these fractions of the held-out items
ENCLOSED = (0.99, 0.9, 0.5)
ClassProbabilities = Callable[[np.ndarray], np.ndarray]


def draw_decision(
    runs: list[FigureRun],
    *,
    classifiers: tuple[Classifier, ...] = ("neural_network",),
    n: Positive = 2000,
    seed: Count = 0,
) -> Picture:
    """Return p(y|x) in the plane: by scikit-learn's classifiers, and by each run's Bayes rule.

    Colors are the most probable class, the stronger the more certain, and black lines are
    boundaries. A generative model also has contours of p(x), which enclose 50%, 90% and 99% of the
    held-out items. A cross marks a point far from all data.

    Args:
        classifiers: trained on the same items: logistic_regression | neural_network.
        n: training items, and held-out items at most.
        seed: of the items and of the classifiers.

    Raises:
        UserError: the data is not points of a plane with classes, or a model is not conditional.
    """
    first = runs[0].run
    spec = first.spec
    if spec.kind != "points" or spec.dim != 2 or not spec.num_classes:
        raise UserError("figures: kind=decision needs points of a plane with classes")
    train = first.dataset.head("train", min(n, first.dataset.size("train")), seed=seed)
    test = first.dataset.head("test", min(n, first.dataset.size("test")), seed=seed)
    canvas, panels = make_canvas_and_axes(
        5 * (len(classifiers) + len(runs)), 5.9, len(classifiers) + len(runs)
    )
    grid = make_grid_around(test.x)
    far = grid[1][-1, -1] - 0.06 * (grid[1][-1, -1] - grid[1][0, 0])
    for axes, name in zip(panels, classifiers, strict=False):
        classify = fit_classifier(name, train, seed)
        draw_class_map(axes, grid, classify, test, far, title=NAMES[name])
    for axes, run in zip(panels[len(classifiers) :], runs, strict=True):
        log_joint = make_log_joint(run.run)
        title = f"generative: {run.label}"
        draw_class_map(
            axes, grid, class_probabilities(log_joint), test, far, title=title, log_joint=log_joint
        )
    handles = [
        panels[0].plot([], [], "o", color=CLASS_COLORS[k % len(CLASS_COLORS)])[0]
        for k in range(spec.num_classes)
    ]
    labels = [f"class {spec.class_name(k)}" for k in range(spec.num_classes)]
    handles.append(panels[0].plot([], [], color="black", lw=1.8)[0])
    labels.append("decision boundary")
    handles.append(panels[-1].plot([], [], color="0.35", lw=1.0, ls="--")[0])
    labels.append("p(x): 50, 90, 99% of the data inside")
    handles.append(panels[0].plot([], [], "X", color="#b3261e", ms=11)[0])
    labels.append("a point unlike the data")
    canvas.figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=11, frameon=False
    )
    note = (
        f"{len(train):,} training items; accuracy on {len(test):,} held-out items ± standard error"
    )
    return canvas_to_picture(canvas, note)


def make_grid_around(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (GRID_SIDE², 2) of a square around items, and them as (side, side, 2)."""
    low, high = x.amin(0).numpy(), x.amax(0).numpy()
    middle, half = (low + high) / 2, (high - low).max() / 2 * (1 + MARGIN)
    axis = np.linspace(-half, half, GRID_SIDE)
    square = np.stack(np.meshgrid(axis + middle[0], axis + middle[1]), -1)
    return square.reshape(-1, 2), square


def fit_classifier(name: Classifier, train: Batch, seed: int) -> ClassProbabilities:
    """Return p(y|x) (N, classes) of a classifier of scikit-learn, trained on labeled points."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    assert train.y is not None
    x, y = train.x.double().numpy(), train.y.numpy()
    if name == "logistic_regression":
        model: Any = LogisticRegression(max_iter=MAX_ITER)
    else:
        model = MLPClassifier((32, 32), max_iter=MAX_ITER, random_state=seed)
    model.fit(x, y)
    probabilities: ClassProbabilities = model.predict_proba
    return probabilities


def make_log_joint(run: LoadedRun) -> Callable[[np.ndarray], Tensor]:
    """Return a function of points (N, 2): log p(x, y) = log p(x|y) + log p(y) (N, classes).

    Raises:
        UserError: the model lacks a density of each class.
    """
    model = run.model
    if "log_prob" not in abilities(model) or not model.conditional:
        raise UserError(
            f"figures: kind=decision needs a conditional model with log_prob; {run.name} is not "
            "one; train with model.conditional=true"
        )
    labels = run.dataset.splits["train"].y.cpu()
    log_prior = (labels.bincount(minlength=run.spec.num_classes).double() / len(labels)).log()
    like = next(iter([*model.parameters(), *model.buffers()]))

    @torch.no_grad()
    def log_joint(points: np.ndarray) -> Tensor:
        x = torch.from_numpy(points).to(run.device.torch, like.dtype)
        columns = [
            model.log_prob(x, torch.full((len(x),), k, device=x.device)).double().cpu()
            for k in range(run.spec.num_classes)
        ]
        return torch.stack(columns, 1) + log_prior

    return log_joint


def class_probabilities(log_joint: Callable[[np.ndarray], Tensor]) -> ClassProbabilities:
    """Return p(y|x) of log p(x, y), by Bayes' rule."""

    def probabilities(points: np.ndarray) -> np.ndarray:
        p: np.ndarray = log_joint(points).softmax(1).numpy()
        return p

    return probabilities


def draw_class_map(
    axes: Any,
    grid: tuple[np.ndarray, np.ndarray],
    classify: ClassProbabilities,
    test: Batch,
    far: np.ndarray,
    *,
    title: str,
    log_joint: Callable[[np.ndarray], Tensor] | None = None,
) -> None:
    """Draw the classes of a plane, their boundaries, held-out items, and contours of p(x)."""
    from matplotlib.colors import to_rgb

    assert test.y is not None
    points, square = grid
    probabilities = classify(points)
    count = probabilities.shape[1]
    colors = np.array([to_rgb(CLASS_COLORS[k % len(CLASS_COLORS)]) for k in range(count)])
    top = probabilities.max(1, keepdims=True)
    certainty = 0.55 * (top - 1 / count) / (1 - 1 / count)
    shade = (1 - certainty) + certainty * colors[probabilities.argmax(1)]
    x_axis, y_axis = square[0, :, 0], square[:, 0, 1]
    extent = (x_axis[0], x_axis[-1], y_axis[0], y_axis[-1])
    axes.imshow(shade.reshape(*square.shape[:2], 3), extent=extent, origin="lower")
    for k in range(count):
        others = np.delete(probabilities, k, 1).max(1)
        margin = (probabilities[:, k] - others).reshape(square.shape[:2])
        axes.contour(x_axis, y_axis, margin, [0], colors="black", linewidths=1.8)
    x, y = test.x.double().numpy(), test.y.numpy()
    shown = slice(0, POINTS_SHOWN)
    axes.scatter(*x[shown].T, s=11, c=colors[y[shown]], edgecolors="white", linewidths=0.4)
    axes.plot(*far, "X", color="#b3261e", ms=13, mec="white")
    probability = classify(far[None])[0].max()
    lines = [f"p(y|x) = {probability:.3f}"]
    if log_joint is not None:
        inside = log_joint(x).logsumexp(1).numpy()
        levels = sorted({float(np.quantile(inside, 1 - fraction)) for fraction in ENCLOSED})
        heights = log_joint(points).logsumexp(1).numpy().reshape(square.shape[:2])
        axes.contour(
            x_axis, y_axis, heights, levels, colors="0.35", linewidths=1.0, linestyles="dashed"
        )
        typical = float(np.quantile(inside, 0.5))
        digits = (log_joint(far[None]).logsumexp(1).item() - typical) / np.log(10)
        lines.append(f"p(x) = 1e{digits:.0f} × typical")
    box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": "0.6"}
    axes.annotate(
        "\n".join(lines),
        far,
        xytext=(-14, -8),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=11,
        bbox=box,
    )
    accuracy = (classify(x).argmax(1) == y).mean()
    error = binomial_standard_error(accuracy, len(y))
    axes.set_title(f"{title}\naccuracy {accuracy:.4f} ± {error:.4f}", fontsize=FONT_SIZE + 1)
    axes.set(xlabel="x₁", ylabel="x₂", xlim=extent[:2], ylim=extent[2:])
