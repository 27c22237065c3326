"""How likely a model finds an item: the score that likelihood, anomaly and classify share, and what their pictures share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.config.recipes import recipes
from genlab.errors import UserError
from genlab.metrics.reconstruction import squared_error, without_noise
from genlab.runs.loaded_run import Run
from genlab.spec import Batch
from genlab.viz import image_grids

Kind = Literal["density", "noise", "bound", "energy", "reconstruction"]
Ways = dict[
    Kind, tuple[set[str], ...]
]  # each kind with the sets of abilities of which one gives it, the tightest first
SCORES: Ways = {
    "density": ({"log_prob"},),
    "bound": ({"iwae"}, {"elbo"}),
    "energy": ({"energy"},),
    "reconstruction": ({"encode", "decode"},),
}
LIKELIHOODS: Ways = {
    "density": ({"log_prob"}, {"energy", "log_partition"}),
    "bound": SCORES["bound"],
}  # those in nats of p(x)
CLASS_SCORES: Ways = {
    "density": LIKELIHOODS["density"],
    "noise": ({"noise_error"},),
    "bound": SCORES["bound"],
}  # of p(x|y)


@dataclass(frozen=True)
class Score:
    """A number (B,) for x (B, *shape), and y (B,) of a conditional model: the higher, the more likely."""

    kind: Kind
    verb: str  # the ability that it comes from
    of: Callable[[Tensor, Tensor | None], Tensor]
    tag: str = "exact"  # exact | bound | estimate

    def __str__(self) -> str:
        what = {"density": "log p(x) in nats", "bound": "bound of log p(x) in nats", "energy": "minus the energy in nats",
                "noise": "minus the squared error of the noise foretold",
                "reconstruction": "minus the squared error of the reconstruction"}[self.kind]  # fmt: skip
        return f"{what}, by {self.verb}"


def score_of(
    run: Run, ways: Ways = SCORES, *, k: int = 100, terms: int | None = 20, task: str = "score"
) -> Score:
    """Return the first kind of score in `ways` that the run's model has.

    Args:
        k: importance samples of an IWAE bound.
        terms: drawn terms of a diffusion bound, or noise levels at which the noise is foretold; None: all of them.

    Raises:
        UserError: it has none of them; names the models that have.
    """
    model, has = run.model, abilities(run.model)
    kind, verbs = next(
        ((kind, verbs) for kind, sets in ways.items() for verbs in sets if verbs <= has),
        (None, set()),
    )
    if kind is None:
        wanted = " or ".join(
            " with ".join(sorted(verbs)) for sets in ways.values() for verbs in sets
        )
        raise UserError(
            f"{run.name} has no {task}: that takes {wanted}; models that can: {', '.join(able_to(ways))}"
        )
    if "log_prob" in verbs:
        return Score(kind, "log_prob", lambda x, y: model.log_prob(x, y))
    if "log_partition" in verbs:
        z = model.log_partition()
        return Score(
            kind, "energy and log_partition", lambda x, y: -model.energy(x) - z.value, z.tag
        )
    if "iwae" in verbs:
        labelled = "y" in inspect.signature(model.iwae).parameters
        return Score(
            kind,
            "iwae",
            lambda x, y: model.iwae(x, k, y) if labelled else model.iwae(x, k),
            "bound",
        )
    if "noise_error" in verbs:
        return Score(
            kind, "noise_error", lambda x, y: -model.noise_error(x, y, terms=terms), "estimate"
        )
    if "elbo" in verbs:
        some = {"terms": terms} if "terms" in inspect.signature(model.elbo).parameters else {}
        return Score(kind, "elbo", lambda x, y: model.elbo(x, y, **some), "bound")
    if "energy" in verbs:
        return Score(kind, "energy", lambda x, y: -model.energy(x))

    def minus_error(x: Tensor, y: Tensor | None) -> Tensor:
        x = without_noise(x, run.spec)
        return -squared_error(x, model.decode(model.encode(x)), run.spec)

    return Score(kind, "encode and decode", minus_error)


def able_to(ways: Ways) -> list[str]:
    """Return the recipes whose model gives one of the kinds of score."""
    sets = [verbs for sets in ways.values() for verbs in sets]
    return [
        recipe.name for recipe in recipes() if any(verbs <= recipe.abilities() for verbs in sets)
    ]


# --- scores of many items ---------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(
    run: Run, score: Score, batch: Batch, *, batch_size: int, labelled: bool = False
) -> Tensor:
    """Return the score (N,) float64 of each item; of a conditional model given its label, or else of p(x) = Σ_y p(y) p(x|y)."""
    if not conditional(run) or score.kind in ("energy", "reconstruction"):
        return over(run, batch, batch_size, lambda x, _: score.of(x, None))
    if labelled:
        return over(run, batch, batch_size, score.of)
    return (
        class_scores(run, score, batch, batch_size=batch_size) + class_shares(run).log()
    ).logsumexp(1)


@torch.no_grad()
def class_scores(run: Run, score: Score, batch: Batch, *, batch_size: int, seed: int = 0) -> Tensor:
    """Return log p(x|y), or its bound (N, classes) float64, of each item and class of a conditional model.

    A bound that draws does so with the same numbers for every class: what tells them apart is then not the luck of their draws
    (Li et al. 2023, https://arxiv.org/abs/2303.16203, section 3.2).
    """

    def of_class(k: int) -> Tensor:
        run.device.seed(seed)
        return over(
            run,
            batch,
            batch_size,
            lambda x, _: score.of(x, torch.full((len(x),), k, device=x.device)),
        )

    return torch.stack([of_class(k) for k in range(run.spec.classes)], 1)


def class_shares(run: Run) -> Tensor:
    """Return the share p(y) (classes,) float64 of each class among the training items."""
    counts = run.dataset.splits["train"].y.cpu().bincount(minlength=run.spec.classes).double()
    return counts / counts.sum()


def over(
    run: Run, batch: Batch, size: int, function: Callable[[Tensor, Tensor | None], Tensor]
) -> Tensor:
    """Return function(x, y) (N, …) as float64 on the CPU, computed batch by batch on the run's device."""
    parts = []
    for i in range(0, len(batch), size):
        part = run.device.ready(
            Batch(batch.x[i : i + size], None if batch.y is None else batch.y[i : i + size])
        )
        parts.append(function(part.x, part.y).double().cpu())
    return torch.cat(parts)


def conditional(run: Run) -> bool:
    """Whether the model has a density for each class."""
    return getattr(run.model, "conditional", False)


# --- what is written --------------------------------------------------------------------------------------------------


def folder_of(runs: list[Run], task: str, out: str | None) -> Path:
    """Return the folder that a task writes to: `out`, or its own in the run's folder, of several runs the one around them."""
    around = (
        Path(os.path.commonpath([run.folder.path.resolve() for run in runs]))
        if len(runs) > 1
        else runs[0].folder.path
    )
    folder = Path(out) if out else around / task
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def figure(wide: int, high: int, panels: int = 1):
    """Return a canvas (100·wide × 100·high pixels) and its axes, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(wide, high), dpi=100, layout="constrained"))
    return canvas, canvas.figure.subplots(1, panels, squeeze=False)[0]


def save(canvas, path: Path) -> Path:
    """Write a canvas as PNG, print and return its path."""
    canvas.draw()
    print(image_grids.save(np.asarray(canvas.buffer_rgba())[..., :3].copy(), path))
    return path


def histogram(axes, sets: dict[str, Tensor], label: str) -> None:
    """Draw the scores (N,) of named sets as histograms over the same bins, without the outermost 0.2% that would squeeze them."""
    every = torch.cat(list(sets.values()))
    low, high = (
        np.quantile(every, [0.002, 1]) if len(every) > 1 else (every.min() - 1, every.max() + 1)
    )
    bins = np.linspace(low, high if high > low else low + 1, 60)
    for name, values in sets.items():
        axes.hist(values.numpy(), bins=bins, alpha=0.6, density=True, label=name)
    axes.set_xlabel(label)
    axes.set_yticks([])
    axes.legend(fontsize=8)
