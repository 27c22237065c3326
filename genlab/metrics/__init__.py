"""Every measure, by name: whether it fits a model and its data, and numbers that carry their conditions.

A new measure is a function in a file of this folder and a line in `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from genlab.abilities import ABILITIES, abilities, need
from genlab.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Settings:
    """What a measurement fixes."""

    split: str = "test"
    n: int = 1000  # items, real and drawn
    seed: int = 0
    k: int = 100  # importance samples of the IWAE bound
    terms: int | None = 20  # of a diffusion bound's sum, drawn without bias; None: all of them
    batch_size: int = 250


@dataclass(frozen=True)
class Row:
    """One number with its conditions."""

    name: str
    value: float
    unit: str
    tag: str = "exact"  # exact | bound | estimate
    error: float | None = None  # standard error, where one exists
    higher_is_better: bool = False
    conditions: dict[str, Any] = field(default_factory=dict)  # extractor, sample count, split, seed

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Metric:
    """A measure: the rows that it would give for a model and its data (none: it does not fit), and how they are had."""

    rows: Callable[[Any, Any], list[str]]
    measure: Callable[[Any, Any, Settings], list[Row]]
    needs: tuple[str, ...]  # the abilities of which the model must have one


def registry() -> dict[str, Metric]:
    """Return every measure by name."""
    from genlab.metrics import energy_distance, likelihood, modes

    return {
        "likelihood": Metric(likelihood.rows, likelihood.measure, ("log_prob", "log_partition", "iwae", "elbo")),
        "modes": Metric(modes.rows, modes.measure, ("sample",)),
        "energy_distance": Metric(energy_distance.rows, energy_distance.measure, ("sample",)),
    }


def metrics_for(model: Any, dataset: Any) -> dict[str, Metric]:
    """Return the measures that fit a model and its data."""
    return {name: metric for name, metric in registry().items() if metric.rows(model, dataset)}


def measure(
    model: Any,
    dataset: Any,
    *,
    metrics: list[str] | None = None,
    able: Callable[[str], list[str]] = lambda verb: [],
    **settings: Any,
) -> list[Row]:
    """Measure a model on held-out data, by all measures that fit or by those named.

    Args:
        able: names the recipes that have an ability, for the message of a refusal.

    Raises:
        UserError: a named measure does not exist, or does not fit; says why.
    """
    known, chosen = registry(), metrics_for(model, dataset)
    for name in metrics or ():
        if name in ABILITIES:
            need(model, name, partial(able, name))
            raise UserError(f"metrics: {name} is an ability; the metrics are {', '.join(known)}")
        if name not in known:
            raise UserError(f"metrics: there is no '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
        if name not in chosen:
            raise UserError(f"metrics: {name} does not fit: {why_not(known[name], model, dataset, able)}")
    return [
        row for name in metrics or chosen for row in known[name].measure(model, dataset, Settings(**settings))
    ]


def why_not(metric: Metric, model: Any, dataset: Any, able: Callable[[str], list[str]]) -> str:
    """Return why a measure does not fit a model and its data."""
    if abilities(model) & set(metric.needs):
        return f"{dataset.name} is not data that it can judge"
    others = sorted({name for verb in metric.needs for name in able(verb)})
    return f"{type(model).__name__} has no {' or '.join(metric.needs)}; models that can: {', '.join(others)}"
