"""Keep the states of a trajectory that a picture and an animation show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from genlab.abilities import TrajectoryState
from genlab.errors import UserError

Spacing = Literal["even", "log"]
MAX_BYTES = 2**28  # of the states that are kept; beyond it every second one is dropped
MIN_STATES = 64  # that are kept, however large they are


@dataclass
class StateRecorder:
    """Receives the states of a trajectory; keeps the first, the last, and some between.

    Attributes:
        times: of states that are kept in any case, or the nearest to them.
        spacing: of the states between: "log" keeps the first ones close together.
        count: the number of states so far.
    """

    times: Sequence[float] = ()
    spacing: Spacing = "even"
    count: int = 0
    _kept: dict[int, TrajectoryState] = field(default_factory=dict)  # by number
    _nearest: dict[float, tuple[float, int, TrajectoryState]] = field(default_factory=dict)
    _last: tuple[int, TrajectoryState] | None = None
    _stride: int = 1
    _range: tuple[float, float] = (float("inf"), -float("inf"))  # of the times so far

    def __call__(self, state: TrajectoryState) -> None:
        """Receive the next state."""
        state = copy_state(state)
        number, self.count = self.count, self.count + 1
        self._last = (number, state)
        self._range = (min(self._range[0], state.time), max(self._range[1], state.time))
        for time in self.times:
            distance = abs(state.time - time)
            if time not in self._nearest or distance < self._nearest[time][0]:
                self._nearest[time] = (distance, number, state)
        if number % self._stride == 0 or self.is_early(number):
            self._kept[number] = state
        if len(self._kept) > max(MIN_STATES, MAX_BYTES // num_bytes(state)):
            self._stride *= 2
            self._kept = {
                k: kept
                for k, kept in self._kept.items()
                if k % self._stride == 0 or self.is_early(k)
            }

    def is_early(self, number: int) -> bool:
        """Whether a state is among the first, which are kept if they are close together."""
        return self.spacing == "log" and number < MIN_STATES // 2

    def states(self) -> dict[int, TrajectoryState]:
        """Return the states that are kept, by their number in the trajectory."""
        found = dict(self._kept)
        found |= {number: state for _, number, state in self._nearest.values()}
        if self._last is not None:
            found[self._last[0]] = self._last[1]
        return dict(sorted(found.items()))

    def states_at_times(self) -> list[TrajectoryState]:
        """Return the states nearest to `times`, in the order of the trajectory.

        Raises:
            UserError: a time is outside the trajectory.
        """
        low, high = self._range
        if outside := [time for time in self.times if not low <= time <= high]:
            raise UserError(
                f"times={[f'{time:g}' for time in outside]}: the states of this trajectory have "
                f"the times {low:g} to {high:g}".replace("'", "")
            )
        found = {number: state for _, number, state in self._nearest.values()}
        return [state for _, state in sorted(found.items(), key=lambda entry: entry[0])]

    def spaced_states(self, n: int, spacing: Spacing | None = None) -> list[TrajectoryState]:
        """Return up to n states from the first to the last, spaced as `spacing` says."""
        kept = self.states()
        numbers = torch.tensor(list(kept))
        wanted = spaced_numbers(self.count, n, spacing or self.spacing)
        nearest = {int((numbers - number).abs().argmin()) for number in wanted}
        states = list(kept.values())
        return [states[i] for i in sorted(nearest)]


def spaced_numbers(count: int, n: int, spacing: Spacing) -> list[int]:
    """Return up to n distinct numbers from 0 to count − 1, with both ends if n is above 1.

    With "log" they are of 0, 1, 2, 5, 10, 20, 50, ….
    """
    last = count - 1
    if n == 1 or last < 1:
        return [last]
    choices = list(range(count))
    if spacing == "log":
        decades = range(len(str(last)))
        choices = [k * 10**d for d in decades for k in (1, 2, 5) if k * 10**d < last]
        choices = [0, *choices, last]
    steps = len(choices) - 1
    return sorted({choices[round(i * steps / (n - 1))] for i in range(n)})


def copy_state(state: TrajectoryState) -> TrajectoryState:
    """Return a copy of a state on the CPU, which later steps do not change."""

    def copy(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().cpu().clone()

    return replace(
        state,
        x=state.x.detach().cpu().clone(),
        guess=copy(state.guess),
        known=copy(state.known),
        next_probs=copy(state.next_probs),
        numbers={
            name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
            for name, value in state.numbers.items()
        },
    )


def num_bytes(state: TrajectoryState) -> int:
    """Return the size of a state in memory."""
    tensors = (state.x, state.guess, state.known, state.next_probs)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
