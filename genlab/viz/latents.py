"""A latent space as pictures: where the codes of data lie, what lies between them, and what comes back from a code."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.abilities import abilities
from genlab.spec import Spec
from genlab.viz import image_grids

SIDE = 20  # codes along each axis of a manifold
SIGMAS = 2.0  # a prior is shown between the quantiles that a Gaussian has at ± this many standard deviations
DRAWS = 100_000  # codes that a prior's quantiles are taken from
PAIRS = 40  # items beside their reconstructions
COLUMNS = 10


def figure():
    """Return a square canvas (500 × 500 pixels) and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(5, 5), dpi=100))
    return canvas, canvas.figure.add_axes((0.11, 0.08, 0.86, 0.85))


def pixels(canvas) -> np.ndarray:
    """Return a canvas as bytes (H', W', 3)."""
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def latent_scatter(z: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Return codes (N, …) as a picture (H', W', 3), coloured by label y (N,) with a legend.

    Two dimensions stand as they are, more as their first two principal components, which the title says, with the share
    of the codes' variance in them; a single one stands against the label.
    """
    from matplotlib import colormaps

    z = np.asarray(z, np.float64).reshape(len(z), -1)  # (N, d)
    plane, title = projected(z, y)
    canvas, axes = figure()
    if y is None:
        axes.scatter(plane[:, 0], plane[:, 1], s=7, c="#1f4e9c", alpha=0.7, linewidths=0)
    else:
        classes = np.unique(y)
        colours = colormaps["tab10" if len(classes) <= 10 else "turbo"]
        for i, label in enumerate(classes):
            colour = colours(i if len(classes) <= 10 else i / (len(classes) - 1))
            points = plane[y == label]
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=9,
                color=colour,
                alpha=0.8,
                linewidths=0,
                label=str(label),
            )
        if len(classes) <= 30:  # more would hide the codes
            axes.legend(
                markerscale=2,
                fontsize=8,
                ncols=1 + len(classes) // 16,
                loc="best",
                handletextpad=0.1,
            )
    axes.set_title(title, fontsize=10)
    return pixels(canvas)


def projected(z: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, str]:
    """Return codes (N, d) in a plane (N, 2), and the words that say which plane it is."""
    d = z.shape[1]
    if d == 1:
        other, title = (
            (np.zeros(len(z)), "the code") if y is None else (y, "the code against the label")
        )
        return np.stack([z[:, 0], other], 1), title
    if d == 2:
        return z, "the 2 dimensions of the code"
    centred = z - z.mean(0)
    _, s, axes = np.linalg.svd(
        centred, full_matrices=len(z) < 2
    )  # columns of axesᵀ: principal directions; a lone code has none
    share = (s[:2] ** 2).sum() / max((s**2).sum(), np.finfo(float).tiny)
    return centred @ axes[:2].T, f"first 2 principal components of {d}, {share:.0%} of the variance"


def manifold(
    decode: Callable[[Tensor], Tensor], spec: Spec, axes: tuple[Tensor, Tensor]
) -> np.ndarray:
    """Return what the codes of a grid stand for, as a picture (H', W', 3): images in their places, points as a bent grid.

    Args:
        decode: codes (B, 2) to items (B, *shape).
        axes: the codes' coordinates along the picture's width and, upwards, along its height.
    """
    x, y = axes
    codes = torch.stack(
        [x.repeat(len(y)), y.flip(0).repeat_interleave(len(x))], 1
    )  # (len(y) len(x), 2), top row first
    with torch.no_grad():
        items = decode(codes)
    if spec.kind == "image":
        return image_grids.grid(image_grids.to_bytes(items, spec), columns=len(x), gap=0)
    lines = items.detach().float().cpu().numpy().reshape(len(y), len(x), -1)[..., :2]
    canvas, plot = figure()
    for line in (*lines, *lines.swapaxes(0, 1)):
        plot.plot(line[:, 0], line[:, -1], lw=0.7, c="#1f4e9c")
    return pixels(canvas)


def prior_axes(codes: Tensor, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return two axes (side,) over the quantiles of a prior's codes (N, 2): of N(0, I), evenly in probability from −2σ to 2σ."""
    edge = torch.special.ndtr(torch.tensor(-SIGMAS, dtype=torch.float64)).item()
    levels = torch.linspace(edge, 1 - edge, side, dtype=codes.dtype, device=codes.device)
    a, b = codes.T
    return torch.quantile(a, levels), torch.quantile(b, levels)


def range_axes(codes: Tensor, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return two axes (side,) evenly over the range of codes (N, 2)."""
    a, b = (
        torch.linspace(z.min().item(), z.max().item(), side, dtype=z.dtype, device=z.device)
        for z in codes.T
    )
    return a, b


def reconstructions(x: Tensor, r: Tensor, spec: Spec, *, columns: int = COLUMNS) -> np.ndarray:
    """Return items x (N, *shape) and what came back r (N, *shape) as a picture (H', W', 3).

    Images stand in pairs of rows, the original above its reconstruction; points lie in grey with theirs before them.
    """
    if spec.kind == "points":
        return image_grids.picture(r, spec, reals=x)
    full = len(x) // columns * columns or len(x)  # whole rows, or all where there are fewer
    columns = min(columns, len(x))
    pairs = torch.stack(
        [part[:full].unflatten(0, (-1, columns)) for part in (x, r)], 1
    )  # (rows, 2, columns, C, H, W)
    return image_grids.grid(image_grids.to_bytes(pairs.flatten(0, 2), spec), columns=columns)


def lines(ways: Tensor, behind: Tensor | None = None) -> np.ndarray:
    """Return ways (n, T, D) through the points' space as curves of the first two coordinates, items behind them in grey."""
    from matplotlib import colormaps

    canvas, axes = figure()
    if behind is not None:
        x = behind.flatten(1).float().cpu().numpy()
        axes.scatter(x[:, 0], x[:, min(1, x.shape[1] - 1)], s=9, c="0.6", linewidths=0)
    for i, way in enumerate(ways.detach().flatten(2).float().cpu().numpy()):
        colour = colormaps["tab10"](i % 10)
        axes.plot(
            way[:, 0],
            way[:, min(1, way.shape[1] - 1)],
            marker=".",
            ms=5,
            lw=1,
            color=colour,
            alpha=0.8,
        )
    return pixels(canvas)


@torch.no_grad()
def latent_pictures(
    model: nn.Module,
    dataset: Any,
    *,
    n: int,
    seed: int,
    device: torch.device | str = "cpu",
    split: str = "test",
) -> dict[str, np.ndarray]:
    """Return the pictures (H', W', 3) of a model's latent space that fit, by name; none for a model without `encode`.

    "latent" shows the codes of n held-out items; of a model that decodes, "reconstructions" shows what comes back, and
    "manifold" what a grid of two-dimensional codes stands for: over the prior where there is one, else over the codes' range.
    An image's code that takes many steps is noise of as many values, which a plane tells nothing of: it has no "latent".
    """
    verbs, spec = abilities(model), dataset.spec
    if "encode" not in verbs:
        return {}
    walks = spec.kind == "image" and "steps" in signature(model.encode).parameters
    held = dataset.take(split, min(n, PAIRS) if walks else n, seed=seed)
    like = next(model.parameters())
    z = torch.cat([model.encode(part.to(device, like.dtype)) for part in held.x.split(250)])
    y = None if held.y is None else held.y.cpu().numpy()
    found = {} if walks else {"latent": latent_scatter(z.flatten(1).cpu().numpy(), y)}
    if "decode" not in verbs or spec.kind not in ("image", "points"):
        return found
    shown = PAIRS if spec.kind == "image" else len(z)
    found["reconstructions"] = reconstructions(held.x[:shown], model.decode(z[:shown]), spec)
    if z.shape[1:] == (2,):
        torch.manual_seed(seed)
        axes = prior_axes(model.prior(DRAWS)) if "prior" in verbs else range_axes(z)
        found["manifold"] = manifold(model.decode, spec, axes)
    return found
