"""What a search may try: overrides in Hydra's sweep grammar as optuna's distributions, and a trial as overrides again."""

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
class Space:
    """The overrides of a search: of each key a fixed override, or the distribution that its value is drawn from."""

    keys: dict[str, str | BaseDistribution]
    written: tuple[str, ...]  # as they were given

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """Return the space that overrides describe; the last one of a key counts.

        Raises:
            UserError: none of them leaves anything to try, or one cannot be drawn from.
        """
        last = {override.get_key_element(): override for override in overrides}
        keys = {
            key: distribution(o) if o.is_sweep_override() else str(o.input_line)
            for key, o in last.items()
        }
        if not any(isinstance(value, BaseDistribution) for value in keys.values()):
            raise UserError(
                "hydra/sweeper=optuna has nothing to search: give a choice(…), a range(…) or an interval(…), "
                "such as 'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
            )
        return cls(keys, tuple(str(override.input_line) for override in last.values()))

    @property
    def searched(self) -> dict[str, BaseDistribution]:
        """The distributions by key."""
        return {
            key: value for key, value in self.keys.items() if isinstance(value, BaseDistribution)
        }

    def overrides(self, drawn: dict[str, Any]) -> list[str]:
        """Return a job's overrides, with what was drawn for each key that is searched."""
        return [
            value if isinstance(value, str) else f"{key}={drawn[key]}"
            for key, value in self.keys.items()
        ]

    def probes(self) -> list[list[str]]:
        """Return overrides in which each choice of each key is met once, to see whether all of them compose."""
        searched = self.searched.items()
        first = {
            key: one.choices[0] if isinstance(one, CategoricalDistribution) else one.low
            for key, one in searched
        }
        others = [
            first | {key: value}
            for key, one in searched
            for value in getattr(one, "choices", ())[1:]
        ]
        return [self.overrides(drawn) for drawn in (first, *others)]

    def grid(self) -> dict[str, list[Any]]:
        """Return every value of each key.

        Raises:
            UserError: one has no end of values.
        """
        return {key: values(key, one) for key, one in self.searched.items()}


def values(key: str, one: BaseDistribution) -> list[Any]:
    """Return a distribution's values in their order."""
    if isinstance(one, CategoricalDistribution):
        return list(one.choices)
    if isinstance(one, IntDistribution):
        return list(range(one.low, one.high + 1, one.step))
    if isinstance(one, FloatDistribution) and one.step:
        low, step = Decimal(str(one.low)), Decimal(str(one.step))
        return [float(low + i * step) for i in range(round((one.high - one.low) / one.step) + 1)]
    raise UserError(
        f"{key}: a grid has choices and ranges, and an interval has no end of values; give a choice(…) or a range(…)"
    )


def distribution(override: Override) -> BaseDistribution:
    """Return what an override in Hydra's sweep grammar is drawn from.

    A choice keeps its elements as they are typed; a range ends before its stop, as everywhere in Hydra; an interval has both ends
    in it, and is of whole numbers as int(interval(…)); the tag log spreads evenly over the logarithm.

    Raises:
        UserError: an unknown tag, or a space with nothing in it.
    """
    key, value = override.get_key_element(), override.value()
    unknown = sorted(getattr(value, "tags", set()) - set(TAGS))
    if unknown:
        raise UserError(
            f"{override.input_line}: there is no tag '{unknown[0]}'{did_you_mean(unknown[0], TAGS)}; there is log"
        )
    log = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            kind = IntDistribution if isinstance(value.start, int) else FloatDistribution
            return kind(value.start, value.end, log=log)
        if isinstance(value, RangeSweep):
            return stepped(value, log)
    except (
        ValueError
    ) as error:  # optuna's own sentence: the ends the wrong way round, a logarithm of 0
        raise UserError(f"{override.input_line}: {' '.join(str(error).split())}") from error
    if log:
        raise UserError(f"{override.input_line}: the tag log goes with an interval or a range")
    elements = (
        value.list if isinstance(value, ChoiceSweep) else override.sweep_iterator()
    )  # never shuffled: a study's are fixed
    choices = list(
        dict.fromkeys(Override._get_value_element_as_str(element) for element in elements)
    )
    if not choices:
        raise UserError(f"{override.input_line}: there is nothing to choose from for {key}")
    return CategoricalDistribution(choices)


def stepped(value: RangeSweep, log: bool) -> BaseDistribution:
    """Return the distribution over a range's values."""
    found = list(value.range())
    if not found:
        raise ValueError(f"a range from {value.start} to {value.stop} has no value in it")
    low, high, step = min(found), max(found), abs(value.step)
    if isinstance(low, int):
        return IntDistribution(low, high, log=log, step=step)
    exact = Decimal(str(step)) * (len(found) - 1) + Decimal(
        str(low)
    )  # sums of floats miss the last value by a rounding
    return FloatDistribution(low, float(exact), log=log, step=step)
