"""The states of Gibbs chains: from random units to samples, or from data on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import count

from torch import Tensor

from genlab.abilities import Report, TrajectoryState
from genlab.model import GenerativeModel

DEFAULT_GIBBS_STEPS = 1000

# receives the units (B, …) after a Gibbs step, and the hidden units that they were drawn from
StepReport = Callable[[Tensor, Tensor | None], None]


class GibbsTrajectory(GenerativeModel):
    """A model whose samples are the ends of Gibbs chains."""

    trajectory_spacing = "log"
    trajectory_guess = "mean of p(x | h)"

    @abstractmethod
    def gibbs_chain(self, x: Tensor, num_steps: int, report: Report | None = None) -> Tensor:
        """Return the state (B, *shape) of chains that start at x, after num_steps Gibbs steps.

        Args:
            report: receives x, and the state after each step.
        """

    def forward_trajectory(self, report: Report, x: Tensor, *, steps: int | None = None) -> None:
        """Report the states of Gibbs chains that start at the items x (n, *shape).

        Args:
            steps: of the chains; None makes 1,000.
        """
        self.gibbs_chain(x, steps or DEFAULT_GIBBS_STEPS, report)


def make_step_report(
    report: Report | None,
    to_items: Callable[[Tensor], Tensor],
    to_means: Callable[[Tensor], Tensor] | None = None,
    *,
    first: int = 0,
) -> StepReport:
    """Return the function that reports the states of a chain, with their numbers.

    Args:
        to_items: maps units (B, …) to items (B, *shape), without random draws.
        to_means: maps hidden units (B, H) to the means of the items, likewise.
        first: the number of the first state.
    """
    numbers = count(first)

    def report_step(units: Tensor, h: Tensor | None = None) -> None:
        if report is not None:
            step = next(numbers)
            means = None if h is None or to_means is None else to_means(h)
            report(TrajectoryState(step, f"step {step:,}", to_items(units), guess=means))

    return report_step
