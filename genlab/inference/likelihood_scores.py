"""Likelihood scores of items, for the commands likelihood, anomaly and classify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.abilities import Estimate, abilities
from genlab.batching import map_batched
from genlab.config.recipes import Recipe, nearest_recipe_names
from genlab.console import track
from genlab.errors import UserError
from genlab.metrics.reconstruction import (
    level_range_length,
    move_to_bin_centers,
    scaled_squared_error_per_item,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch

ScoreKind = Literal["density", "ode", "noise", "bound", "energy", "reconstruction"]
# Each kind of score with the sets of abilities that give it, the tightest first.
ScoreSources = dict[ScoreKind, tuple[set[str], ...]]
SCORES: ScoreSources = {
    "density": ({"log_prob"},),
    "bound": ({"iwae"}, {"elbo"}),
    "energy": ({"energy"},),
    "reconstruction": ({"encode", "decode"},),
}
# Scores that are log p(x) in nats.
LIKELIHOODS: ScoreSources = {
    "density": ({"log_prob"}, {"energy", "log_partition"}),
    "bound": SCORES["bound"],
}
# Scores of which a map is drawn; an energy without log Z is normalized over the map.
MAPPED_SCORES: ScoreSources = {
    "density": LIKELIHOODS["density"],
    "ode": ({"ode_log_prob"},),
    "bound": SCORES["bound"],
    "energy": SCORES["energy"],
}
# Scores that stand for log p(x|y).
CLASS_SCORES: ScoreSources = {
    "density": LIKELIHOODS["density"],
    "noise": ({"eps_mse"},),
    "bound": SCORES["bound"],
}
DESCRIPTIONS: dict[ScoreKind, str] = {
    "density": "log p(x) in nats",
    "ode": "estimate of log p(x) in nats",
    "bound": "bound of log p(x) in nats",
    "energy": "negative energy in nats",
    "noise": "negative squared error of the predicted noise",
    "reconstruction": "negative squared error of the reconstruction",
}


@dataclass(frozen=True)
class Score:
    """A number (B,) for items x (B, *shape) and labels y (B,) or None; higher is more likely."""

    kind: ScoreKind
    ability: str  # the ability, or abilities, that it comes from
    function: Callable[[Tensor, Tensor | None], Tensor]
    tag: str = "exact"  # exact | bound | estimate
    common_error: float = 0.0  # standard error of a term that all items share, log Z
    note: str = ""  # a warning for the user

    def __str__(self) -> str:
        return f"{DESCRIPTIONS[self.kind]}, by {self.ability}"


def find_supported_score(
    run: LoadedRun,
    sources: ScoreSources = SCORES,
    *,
    iwae_samples: int = 100,
    elbo_timesteps: int | None = 20,
    purpose: str = "score",
) -> Score:
    """Return the first kind of score that the run's model supports.

    Args:
        iwae_samples: importance samples of an IWAE bound.
        elbo_timesteps: sampled timesteps of a diffusion bound or noise error; None uses all.
        purpose: what the score is for, in the message of the error.

    Raises:
        UserError: the model supports none of the kinds; names the models that do.
    """
    available = abilities(run.model)
    for kind, alternatives in sources.items():
        for verbs in alternatives:
            if verbs <= available:
                return make_score(
                    run, kind, verbs, iwae_samples=iwae_samples, elbo_timesteps=elbo_timesteps
                )
    needs = " or ".join(
        " with ".join(sorted(verbs)) for alternatives in sources.values() for verbs in alternatives
    )
    raise UserError(
        f"{run.name} has no {purpose}: that needs {needs}; "
        f"models that have it: {', '.join(recipe_names_with_score(sources, run))}"
    )


def make_score(
    run: LoadedRun,
    kind: ScoreKind,
    verbs: set[str],
    *,
    iwae_samples: int,
    elbo_timesteps: int | None,
) -> Score:
    """Return the score that a set of abilities of the run's model gives."""
    model = run.model
    if "log_prob" in verbs:
        return Score(kind, "log_prob", model.log_prob)
    if "ode_log_prob" in verbs:
        return Score(kind, "ode_log_prob", model.ode_log_prob, "estimate")
    log_z = Estimate(0.0, None, "exact")
    if verbs & {"log_partition", "iwae", "elbo"} and "log_partition" in abilities(model):
        log_z = model.log_partition()
    of_log_z: dict[str, Any] = {"common_error": log_z.error or 0.0, "note": log_z.note}
    bound = log_z.tag if log_z.tag != "exact" else "bound"  # a bound with an estimate is one
    if "log_partition" in verbs:
        return Score(
            kind,
            "energy and log_partition",
            lambda x, y: -model.energy(x) - log_z.value,
            log_z.tag,
            **of_log_z,
        )
    if "iwae" in verbs:
        return Score(kind, "iwae", lambda x, y: model.iwae(x, iwae_samples, y), bound, **of_log_z)
    if "eps_mse" in verbs:
        return Score(
            kind,
            "eps_mse",
            lambda x, y: -model.eps_mse(x, y, num_terms=elbo_timesteps),
            "estimate",
        )
    if "elbo" in verbs:
        return Score(
            kind,
            "elbo",
            lambda x, y: model.elbo(x, y, num_terms=elbo_timesteps),
            bound,
            **of_log_z,
        )
    if "energy" in verbs:
        return Score(kind, "energy", lambda x, y: -model.energy(x))

    def negative_error(x: Tensor, y: Tensor | None) -> Tensor:
        x = move_to_bin_centers(x, run.spec)
        return -scaled_squared_error_per_item(
            x, model.decode(model.encode(x)), scale=level_range_length(run.spec)
        )

    return Score(kind, "encode and decode", negative_error)


def recipe_names_with_score(sources: ScoreSources, run: LoadedRun) -> list[str]:
    """Return a few recipes whose models support one of the kinds of score."""
    alternatives = [verbs for group in sources.values() for verbs in group]

    def fits(recipe: Recipe) -> bool:
        return any(verbs <= recipe.abilities() for verbs in alternatives)

    return nearest_recipe_names(fits, run.spec.kind, run.model)


# --- scores of many items -------------------------------------------------------------------------


def score_items(
    run: LoadedRun, score: Score, batch: Batch, *, batch_size: int, use_labels: bool = False
) -> Tensor:
    """Return the score (N,) float64 of each item.

    A conditional model's score is that of p(x) = Σ_y p(y) p(x|y), or with `use_labels` that of
    p(x|y) with the item's own label.
    """
    if not run.model.conditional or score.kind in ("energy", "reconstruction"):
        return score_items_in_batches(run, score, batch.x, None, batch_size=batch_size)
    if use_labels:
        return score_items_in_batches(run, score, batch.x, batch.y, batch_size=batch_size)
    joint = (
        score_items_under_each_class(run, score, batch.x, batch_size=batch_size)
        + class_frequencies(run).log()
    )
    return joint.logsumexp(1)


def score_items_under_each_class(
    run: LoadedRun, score: Score, x: Tensor, *, batch_size: int, seed: int = 0
) -> Tensor:
    """Return log p(x|y), or its bound, (N, classes) float64 of each item under each class.

    A score that draws random numbers draws the same ones for every class, so that the classes do
    not differ by chance (Li et al. 2023, https://arxiv.org/abs/2303.16203, section 3.2).
    """
    classes = torch.arange(run.spec.num_classes)
    return score_items_under_each_condition(
        run, score, x, classes, batch_size=batch_size, seed=seed
    )


def score_items_under_each_condition(
    run: LoadedRun, score: Score, x: Tensor, conditions: Tensor, *, batch_size: int, seed: int = 0
) -> Tensor:
    """Return log p(x|c), or its bound, (N, K) float64 of each item under each of K conditions.

    A score that draws random numbers draws the same ones for every condition.

    Args:
        conditions: classes (K,), or the tokens of captions (K, length).
    """
    columns = []
    for condition in track(conditions, "scoring", unit="conditions"):
        run.device.seed(seed)
        y = condition.expand(len(x), *condition.shape)
        columns.append(score_items_in_batches(run, score, x, y, batch_size=batch_size))
    return torch.stack(columns, 1)


def score_items_in_batches(
    run: LoadedRun, score: Score, x: Tensor, y: Tensor | None, *, batch_size: int
) -> Tensor:
    """Return the score (N,) float64 on the CPU, computed batch by batch on the run's device."""

    def score_batch(x: Tensor, y: Tensor | None) -> Tensor:
        batch = run.device.to_device(Batch(x, y))
        return score.function(batch.x, batch.y).double().cpu()

    return map_batched(score_batch, x, y, batch_size=batch_size)


def class_frequencies(run: LoadedRun) -> Tensor:
    """Return the frequency p(y) (classes,) float64 of each class among the training items."""
    counts = run.dataset.splits["train"].y.cpu().bincount(minlength=run.spec.num_classes).double()
    return counts / counts.sum()
