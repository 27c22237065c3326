"""The types that all metrics share: their settings, their rows, and a metric itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from genlab.errors import UserError

if TYPE_CHECKING:
    from genlab.metrics.context import MetricContext

# When a metric is computed without being named: in training too, in `genlab evaluate`, or never.
Stage = Literal["training", "evaluation", "on_request"]
STAGES: tuple[Stage, ...] = ("training", "evaluation", "on_request")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of an evaluation.

    Attributes:
        split: the held-out split.
        n: number of held-out items, and of samples.
        seed: of the choice of items and of the samples.
        iwae_samples: importance samples of an IWAE bound.
        elbo_timesteps: terms of a diffusion bound that are drawn, without bias; None sums them all.
        batch_size: items in memory at once.
        features: feature spaces; None uses the one that suits the data.
        sampler: options of the model's `sample`.
    """

    split: str = "test"
    n: int = 1000
    seed: int = 0
    iwae_samples: int = 100
    elbo_timesteps: int | None = 20
    batch_size: int = 250
    features: tuple[str, ...] | None = None
    sampler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One number with its conditions.

    Attributes:
        tag: exact | bound | estimate.
        error: standard error, if it has one.
        real_vs_real: the same number of real items in the place of the samples: the value that a
            perfect sampler would reach.
        better: which direction is better.
        conditions: feature space, sample count, split, seed, …
        parts: terms whose sum is the value; they are logged, but not shown in tables.
        note: a warning for the user, in words.
    """

    name: str
    value: float
    unit: str
    tag: str = "exact"
    error: float | None = None
    real_vs_real: float | None = None
    better: Literal["lower", "higher", "neither"] = "lower"
    conditions: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a number that is not finite becomes None, because JSON has none."""
        return {
            **asdict(self),
            "value": _finite_or_none(self.value),
            "error": _finite_or_none(self.error),
            "real_vs_real": _finite_or_none(self.real_vs_real),
        }


def _finite_or_none(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


class NotMeasurableError(UserError):
    """A metric cannot be computed from the items that there are; other metrics may be."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        row_names: returns the names of the rows that it would give in a context; none if it does
            not apply there.
        measure: returns the rows; raises NotMeasurableError if the items do not suffice.
        abilities: the model needs one of these abilities.
        stage: when it is computed without being named.
        min_items: the fewest held-out items, and samples, that it needs.
        data: the data that it is defined for, in words, for messages.
        needs_classifier: whether it uses the classifier of the data's classes, whatever the
            feature spaces are.
        takes_missing_values: whether it is defined for items with missing values.
    """

    row_names: Callable[[MetricContext], list[str]]
    measure: Callable[[MetricContext], list[Row]]
    abilities: tuple[str, ...]
    stage: Stage = "evaluation"
    min_items: int = 1
    data: str = ""
    needs_classifier: bool = False
    takes_missing_values: bool = False


def require_min_items(metric: str, least: int, **counts: int) -> None:
    """Raise NotMeasurableError if a set has fewer items than a metric needs.

    Args:
        metric: its name with its article, for the message.
        counts: name of a set -> its number of items.
    """
    for name, count in counts.items():
        if count < least:
            raise NotMeasurableError(
                f"{metric} requires at least {least} {name.replace('_', ' ')}; there "
                f"{'is' if count == 1 else 'are'} {count}"
            )


def mean_and_error(values: Any) -> tuple[float, float | None]:
    """Return the mean of values (N,) and its standard error, which is None for a single value."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None
    return values.mean().item(), error


def binomial_standard_error(fraction: float, n: int) -> float:
    """Return the standard error of a fraction of n items."""
    return math.sqrt(fraction * (1 - fraction) / n)
