"""Search spaces: overrides in Hydra's sweep grammar as Optuna distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from genlab.errors import UserError, did_you_mean

TAGS = ("log",)


@dataclass(frozen=True)
class SearchSpace:
    """The overrides of a search: each key has a fixed override or a distribution of its value."""

    entries: dict[str, str | BaseDistribution]
    given: tuple[str, ...]  # the overrides as they were given

    @classmethod
    def from_overrides(cls, overrides: Sequence[Override]) -> SearchSpace:
        """Return the space that overrides describe; of a key given twice, the last one counts.

        Raises:
            UserError: all overrides are fixed, or one describes no distribution.
        """
        last = {override.get_key_element(): override for override in overrides}
        entries = {
            key: parse_distribution(o) if o.is_sweep_override() else str(o.input_line)
            for key, o in last.items()
        }
        if not any(isinstance(entry, BaseDistribution) for entry in entries.values()):
            raise UserError(
                "hydra/sweeper=optuna has nothing to search: give a choice(…), a range(…) or an "
                "interval(…), such as 'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
            )
        return cls(entries, tuple(str(override.input_line) for override in last.values()))

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions, by key."""
        return {k: v for k, v in self.entries.items() if isinstance(v, BaseDistribution)}

    def job_overrides(self, params: dict[str, Any]) -> list[str]:
        """Return the overrides of a job.

        Args:
            params: the trial's values, by key.
        """
        return [
            entry if isinstance(entry, str) else f"{key}={params[key]}"
            for key, entry in self.entries.items()
        ]

    def probe_overrides(self) -> list[list[str]]:
        """Return jobs that use each choice of each key once, to test whether all compose."""
        first: dict[str, Any] = {}
        others: list[dict[str, Any]] = []
        for key, distribution in self.distributions.items():
            if isinstance(distribution, CategoricalDistribution):
                first[key] = distribution.choices[0]
                others += [{key: choice} for choice in distribution.choices[1:]]
            elif isinstance(distribution, IntDistribution | FloatDistribution):
                first[key] = distribution.low
        return [self.job_overrides(first | other) for other in ({}, *others)]

    def grid_values(self) -> dict[str, list[Any]]:
        """Return all values of each key.

        Raises:
            UserError: a key has infinitely many.
        """
        return {key: list_distribution_values(key, d) for key, d in self.distributions.items()}


def list_distribution_values(key: str, distribution: BaseDistribution) -> list[Any]:
    """Return all values of a distribution, in order.

    Raises:
        UserError: there are infinitely many.
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    if isinstance(distribution, FloatDistribution) and distribution.step:
        low, step = Decimal(str(distribution.low)), Decimal(str(distribution.step))
        num_steps = round((distribution.high - distribution.low) / distribution.step)
        return [float(low + i * step) for i in range(num_steps + 1)]
    raise UserError(
        f"{key}: a grid needs choices or ranges, but an interval has infinitely many values; "
        "give a choice(…) or a range(…)"
    )


def parse_distribution(override: Override) -> BaseDistribution:
    """Return the distribution that an override in Hydra's sweep grammar describes.

    A choice keeps its elements as typed. A range excludes its stop, as everywhere in Hydra. An
    interval includes both ends; int(interval(…)) is an interval of whole numbers. The tag log
    spreads the values evenly over the logarithm.

    Raises:
        UserError: an unknown tag, or an empty space.
    """
    key, value = override.get_key_element(), override.value()
    tags: set[str] = getattr(value, "tags", set())
    for tag in sorted(tags - set(TAGS)):
        raise UserError(
            f"{override.input_line}: unknown tag '{tag}'{did_you_mean(tag, TAGS)}; the only tag "
            "is log"
        )
    log = "log" in tags
    try:
        if isinstance(value, IntervalSweep):
            return interval_distribution(value, log)
        if isinstance(value, RangeSweep):
            return range_distribution(value, log)
    except ValueError as error:  # such as reversed ends, or the logarithm of 0
        raise UserError(f"{override.input_line}: {' '.join(str(error).split())}") from error
    if log:
        raise UserError(f"{override.input_line}: the tag log needs an interval or a range")
    # In the given order even for shuffle(…): the choices of a study must not change.
    elements = value.list if isinstance(value, ChoiceSweep) else override.sweep_iterator()
    choices = [Override._get_value_element_as_str(element) for element in elements]
    if not choices:
        raise UserError(f"{override.input_line}: there are no choices for {key}")
    return CategoricalDistribution(list(dict.fromkeys(choices)))


def interval_distribution(sweep: IntervalSweep, log: bool) -> BaseDistribution:
    """Return the distribution over an interval.

    Raises:
        ValueError: its ends are reversed, or have no logarithm.
    """
    start, end = sweep.start, sweep.end
    assert start is not None and end is not None
    if isinstance(start, int):
        return IntDistribution(start, int(end), log=log)
    return FloatDistribution(start, end, log=log)


def range_distribution(sweep: RangeSweep, log: bool) -> BaseDistribution:
    """Return the distribution over the values of a range.

    Raises:
        ValueError: the range is empty.
    """
    values = list(sweep.range())
    if not values:
        raise ValueError(f"a range from {sweep.start} to {sweep.stop} is empty")
    low, high, step = min(values), max(values), abs(sweep.step)
    if isinstance(low, int):
        return IntDistribution(low, int(high), log=log, step=int(step))
    # Exact: the rounding of repeated sums would miss the last value.
    exact_high = Decimal(str(step)) * (len(values) - 1) + Decimal(str(low))
    return FloatDistribution(low, float(exact_high), log=log, step=step)
