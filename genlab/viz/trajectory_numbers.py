"""Parts that pictures of trajectories share: their content, and how numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from genlab.abilities import TrajectoryState
from genlab.spec import DataSpec
from genlab.viz.slides import TableLine


@dataclass(frozen=True)
class TrajectoryPicture:
    """The content of the pictures of a trajectory beside its states.

    Attributes:
        spec: of the items.
        guess_name: of the row of guesses.
        sample_name: of a row of states.
        data: items (N, *shape) that are shown behind points.
        side: codes along an axis of a grid, the last side² samples of each state; 0 for none.
        note: a sentence for the caption.
    """

    spec: DataSpec
    guess_name: str = "guess of x₀"
    sample_name: str = "sample"
    data: Tensor | None = None
    side: int = 0
    note: str = ""


def format_number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.1e}"


def shared_number_lines(
    states: Sequence[TrajectoryState], *, averages: bool = False
) -> list[TableLine]:
    """Return the numbers that all samples of a state share, a line for each symbol.

    Args:
        averages: also the means of the numbers that each sample has for itself.
    """
    names = list(dict.fromkeys(name for state in states for name in state.numbers))
    lines = []
    for name in names:
        values = [state.numbers.get(name) for state in states]
        is_mean = any(isinstance(value, Tensor) for value in values)
        if is_mean and not averages:
            continue
        texts = ["" if v is None else format_number(to_mean(v)) for v in values]
        lines.append(TableLine(f"mean {name}" if is_mean else name, texts))
    return lines


def to_mean(value: float | Tensor) -> float:
    """Return a number, or the mean of one number for each sample."""
    return value.double().mean().item() if isinstance(value, Tensor) else float(value)


def own_numbers(state: TrajectoryState, i: int) -> str:
    """Return the numbers that sample i has for itself, to write below it."""
    return "\n".join(
        f"{name} {format_number(value[i].item())}"
        for name, value in state.numbers.items()
        if isinstance(value, Tensor)
    )
