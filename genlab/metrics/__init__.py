"""Every measure, by name: whether it fits a model and its data, and numbers that carry their conditions.

A new measure is a function in a file of this folder and a line in `registry`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from genlab.abilities import ABILITIES, need
from genlab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from genlab.metrics.context import Subject


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a measurement fixes."""

    split: str = "test"
    n: int = 1000  # items, real and drawn
    seed: int = 0
    k: int = 100  # importance samples of the IWAE bound
    terms: int | None = 20  # of a diffusion bound's sum, drawn without bias; None: all of them
    batch_size: int = 250
    features: tuple[str, ...] | None = None  # feature spaces; None: the one that suits the data
    sampler: dict[str, Any] = field(default_factory=dict)  # arguments of the model's `sample`


@dataclass(frozen=True)
class Row:
    """One number with its conditions."""

    name: str
    value: float
    unit: str
    tag: str = "exact"  # exact | bound | estimate
    error: float | None = None  # standard error, where one exists
    floor: float | None = (
        None  # the same number of one held-out half against the other: what no model is asked to beat
    )
    better: Literal["lower", "higher", "neither"] = "lower"
    conditions: dict[str, Any] = field(
        default_factory=dict
    )  # feature space, sample count, split, seed
    parts: dict[str, float] = field(
        default_factory=dict
    )  # what the value is the sum of: logged, not shown in tables
    note: str = ""  # in words, what a person should be told

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a number that is not finite, which JSON has no word for, becomes None."""
        numbers = {
            k: v
            for k in ("value", "error", "floor")
            if (v := getattr(self, k)) is not None and math.isfinite(v)
        }
        return {**asdict(self), "value": None, "error": None, "floor": None, **numbers}


@dataclass(frozen=True)
class Metric:
    """A measure: the rows that it would give for a subject (none: it does not fit), and how they are had."""

    rows: Callable[[Subject], list[str]]
    measure: Callable[[Subject], list[Row]]
    needs: tuple[str, ...]  # the abilities of which the model must have one
    when: Literal["training", "evaluation", "asked"] = (
        "evaluation"  # from when on it is part of "all that fit"
    )


WHEN = ("training", "evaluation", "asked")


def registry() -> dict[str, Metric]:
    """Return every measure by name."""
    from genlab.metrics import (
        active_units,
        classification_error,
        classifier_metrics,
        cluster_purity,
        disentanglement,
        efficiency,
        energy_distance,
        frechet,
        inception_score,
        kid_mmd,
        likelihood,
        memorization,
        mode_coverage,
        paired_translation,
        precision_recall,
        reconstruction,
        sliced_wasserstein,
        unpaired_translation,
    )

    densities, sample = ("log_prob", "log_partition", "iwae", "elbo"), ("sample",)
    return {
        "likelihood": Metric(likelihood.rows, likelihood.measure, densities, "training"),
        "ode_likelihood": Metric(likelihood.ode_rows, likelihood.ode, ("ode_log_prob",), "asked"),
        "classification": Metric(
            classification_error.rows, classification_error.measure, ("classify",), "training"
        ),
        "latent_use": Metric(active_units.rows, active_units.measure, ("posterior",), "training"),
        "modes": Metric(mode_coverage.rows, mode_coverage.measure, sample, "training"),
        "frechet": Metric(frechet.rows, frechet.measure, sample),
        "kernel_distance": Metric(kid_mmd.kid_rows, kid_mmd.kid_measure, sample),
        "mmd": Metric(kid_mmd.mmd_rows, kid_mmd.mmd_measure, sample),
        "sliced_wasserstein": Metric(sliced_wasserstein.rows, sliced_wasserstein.measure, sample),
        "energy_distance": Metric(
            energy_distance.rows, energy_distance.measure, sample, "training"
        ),
        "manifold": Metric(precision_recall.rows, precision_recall.measure, sample),
        "inception_score": Metric(inception_score.rows, inception_score.measure, sample),
        "class_modes": Metric(
            classifier_metrics.class_modes_rows, classifier_metrics.class_modes, sample
        ),
        "class_accuracy": Metric(
            classifier_metrics.class_accuracy_rows, classifier_metrics.class_accuracy, sample
        ),
        "prompt_accuracy": Metric(
            classifier_metrics.prompt_accuracy_rows, classifier_metrics.prompt_accuracy, sample
        ),
        "train_on_generated": Metric(
            classifier_metrics.train_on_generated_rows,
            classifier_metrics.train_on_generated,
            sample,
            "asked",
        ),
        "memorisation": Metric(memorization.rows, memorization.measure, sample),
        "reconstruction": Metric(reconstruction.rows, reconstruction.measure, ("decode",)),
        "translation": Metric(
            paired_translation.rows, paired_translation.measure, ("translate",), "training"
        ),
        "unpaired_translation": Metric(
            unpaired_translation.rows, unpaired_translation.measure, ("translate",), "training"
        ),
        "disentanglement": Metric(disentanglement.rows, disentanglement.measure, ("encode",)),
        "purity": Metric(cluster_purity.rows, cluster_purity.measure, ("encode",)),
        "cost": Metric(efficiency.rows, efficiency.measure, tuple(ABILITIES)),
    }


def metrics_for(subject: Subject, when: str = "evaluation") -> dict[str, Metric]:
    """Return the measures that fit a subject and are taken without being named: in training only the quick ones."""
    taken = WHEN[: WHEN.index(when) + 1]
    return {
        name: metric
        for name, metric in registry().items()
        if metric.when in taken and metric.rows(subject)
    }


def chosen(
    subject: Subject,
    metrics: list[str] | None = None,
    *,
    when: str = "evaluation",
    able: Callable[[str], list[str]] = lambda verb: [],
) -> dict[str, Metric]:
    """Return the measures named, or all that fit.

    Args:
        able: names the recipes that have an ability, for the message of a refusal.

    Raises:
        UserError: a named measure does not exist, or does not fit; says why.
    """
    if metrics is None:
        return metrics_for(subject, when)
    known = registry()
    for name in metrics:
        if name in ABILITIES and subject.model is not None:
            need(subject.model, name, partial(able, name))
            raise UserError(f"metrics: {name} is an ability; the metrics are {', '.join(known)}")
        if name not in known:
            raise UserError(
                f"metrics: there is no '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
        if not known[name].rows(subject):
            raise UserError(f"metrics: {name} does not fit: {why_not(known[name], subject, able)}")
    return {name: known[name] for name in metrics}


def measure(
    subject: Subject,
    metrics: list[str] | None = None,
    *,
    when: str = "evaluation",
    able: Callable[[str], list[str]] = lambda verb: [],
) -> dict[str, list[Row]]:
    """Measure a subject by all measures that fit or by those named (see `chosen`); return measure -> its rows."""
    return {
        name: metric.measure(subject)
        for name, metric in chosen(subject, metrics, when=when, able=able).items()
    }


def why_not(
    metric: Metric, subject: Subject, able: Callable[[str], list[str]] = lambda verb: []
) -> str:
    """Return why a measure does not fit a subject."""
    if subject.abilities & set(metric.needs):
        return f"{subject.dataset.name} is not data that it can judge"
    if subject.model is None:
        return f"it needs a model with {' or '.join(metric.needs)}, not samples alone"
    others = sorted({name for verb in metric.needs for name in able(verb)})
    return f"{subject.name} has no {' or '.join(metric.needs)}" + (
        f"; models that can: {', '.join(others)}" if others else ""
    )
