"""Choose the cases of the quick suite when a test repeats one property over many cases."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest


def first_of_each_kind(
    cases: Iterable[Any],
    kind: Callable[[Any], Hashable],
    *,
    name: Callable[[Any], str] = lambda case: (
        "-".join(map(str, case)) if isinstance(case, tuple) else str(case)
    ),
    marks: Callable[[Any], Iterable[pytest.MarkDecorator]] = lambda case: (),
) -> list[Any]:
    """Return parameters of a test: the first case of each kind is quick, the others are slow.

    A new case of a new kind is therefore in the quick suite by itself; `scripts/test.sh -m slow`
    runs the others.

    Args:
        cases: what the test is repeated over; a tuple gives the values of several arguments.
        kind: returns what decides the result of a case: a trainer, a family, a command.
        name: returns the id of a case.
        marks: returns further marks of a case.
    """
    seen: set[Hashable] = set()
    parameters = []
    for case in cases:
        is_first = kind(case) not in seen
        seen.add(kind(case))
        slow = () if is_first else (pytest.mark.slow,)
        values = case if isinstance(case, tuple) else (case,)
        parameters.append(pytest.param(*values, id=name(case), marks=(*marks(case), *slow)))
    return parameters
