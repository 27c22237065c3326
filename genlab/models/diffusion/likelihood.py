"""How likely a diffusion model finds an item: its bound, its ODE's density, and how well it foretells the noise."""

from __future__ import annotations

from torch import Tensor

from genlab.models.diffusion.ode_likelihood import log_prob
from genlab.models.diffusion.schedule import Level
from genlab.models.diffusion.vlb import bound, noise_error

BOUND_STEPS = 1000  # of the bound of a path of any number of steps


class Judging:
    """What a diffusion model says of items that are there: verbs of its own levels and answers."""

    @property
    def path(self) -> list[Level]:
        """The levels of ancestral sampling in all steps that the model's path has, or in 1,000."""
        return self.levels(self.most or BOUND_STEPS, "ancestral")

    def given(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        """Return the conditions (B, …) under which items x (B, …) are judged; None: under none.

        Raises:
            UserError: labels that the model was not trained for, or none where it always had them.
        """
        if y is None:
            self.need_unconditional()
        return (
            self.asked(len(x), y, 0 if y is None else 1) if self.prompted or y is not None else None
        )

    @property
    def levels_of_data(self) -> int:
        """Number of values of discrete data, whose last step is eq. 13 of DDPM; 0: a density."""
        return self.spec.levels if self.spec.discrete and self.spec.kind == "image" else 0

    def elbo(self, x: Tensor, y: Tensor | None = None, *, terms: int | None = None) -> Tensor:
        """Return a random lower bound (B,) of log p(x), or of log p(x | y), in nats.

        It is that of ancestral sampling in all steps that the path has, or in 1,000.

        Args:
            terms: how many of the middle terms are evaluated, at random times; the result is unbiased for each number of
                them. None: all, which costs a network evaluation an item and step.
        """
        y = self.given(x, y)

        def denoise(xt: Tensor, t: Tensor, row: Tensor) -> tuple[Tensor, Tensor | None]:
            x0, v = self.answer(xt, t, None if y is None else y[row])
            return self.clipped(x0), v

        how = {
            "variance": self.variance,
            "levels": self.levels_of_data,
            "terms": terms,
            "prior_std": self.prior_std,
        }
        return bound(denoise, x, self.path, **how)

    def noise_error(
        self, x: Tensor, y: Tensor | None = None, *, terms: int | None = None
    ) -> Tensor:
        """Return a draw (B,) of the squared error of ε, over all noise levels alike, by which classes are told apart.

        The bound counts the nearly clean levels most, where no class shows (Li et al. 2023, https://arxiv.org/abs/2303.16203).

        Args:
            terms: how many levels are asked, at random; None: all, of a path of any number of steps 1,000.
        """
        y = self.given(x, y)
        return noise_error(
            lambda xt, t, row: self.answer(xt, t, None if y is None else y[row])[0],
            x,
            self.path,
            terms=terms,
        )

    def ode_log_prob(
        self, x: Tensor, y: Tensor | None = None, *, steps: int = 100, probes: int = 1
    ) -> Tensor:
        """Return an estimate (B,) of log p(x), or of log p(x | y), in nats, by the probability-flow ODE; see `ode.log_prob`."""
        self.asked(len(x), y, 0.0 if y is None else 1.0)
        denoise = self.denoiser(y, 0.0 if y is None and self.conditional else 1.0)
        return log_prob(denoise, x, self.upwards(steps), prior_std=self.prior_std, probes=probes)

    def ode_noise(self, *, steps: int = 100) -> float:
        """Return the standard deviation, in data units, of the noise on the law whose density `ode_log_prob` estimates.

        The ODE starts at the least noisy level of the path, and not at the data itself.
        """
        first = self.upwards(steps)[0]
        return first.sigma / first.alpha

    def upwards(self, steps: int) -> list[Level]:
        """Return the levels of the ODE in so many steps, from the least noisy one to the noisiest."""
        return self.levels(self.at_most(steps), "heun")[-2::-1]
