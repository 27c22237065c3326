"""Likelihoods of diffusion models: variational bound, ODE density and ε error."""

from __future__ import annotations

from torch import Tensor

from genlab.abilities import BoundTerms
from genlab.models.diffusion.denoising_model import DenoisingModel
from genlab.models.diffusion.ode_likelihood import ode_log_prob
from genlab.models.diffusion.schedule import NoiseLevel
from genlab.models.diffusion.vlb import eps_mse, vlb_terms

BOUND_STEPS = 1000  # of the bound, for paths with any number of steps


class LikelihoodMixin(DenoisingModel):
    """Likelihoods of items under a diffusion model."""

    elbo_over_timesteps = True

    @property
    def vlb_noise_levels(self) -> list[NoiseLevel]:
        """The levels of ancestral sampling in all steps of the model's path, or in 1,000."""
        return self.noise_levels(self.max_steps or BOUND_STEPS, "ancestral")

    def likelihood_condition(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        """Return the conditions (B, …) under which items x (B, …) are scored; None for none.

        Raises:
            UserError: labels that the model was not trained for, or no labels although the model
                always received them.
        """
        if y is None:
            self.require_label_dropout()
        if y is None and not self.text_conditional:
            return None
        return self.given_or_random_condition(len(x), y, 0 if y is None else 1)

    @property
    def num_discrete_levels(self) -> int:
        """Number of values of discrete data, whose last step is eq. 13 of DDPM; 0 for a density."""
        return self.spec.levels if self.spec.is_discrete and self.spec.kind == "image" else 0

    def elbo(self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None) -> Tensor:
        """Return a random lower bound (B,) of log p(x), or of log p(x | y), in nats.

        The bound is that of ancestral sampling in all steps of the path, or in 1,000.

        Args:
            num_terms: how many of the middle terms are evaluated, at random times; the result is
                unbiased for every number of terms. None evaluates all of them, which costs one
                network evaluation per item and step.
        """
        return -self.bound_terms(x, y, num_terms=num_terms).total

    def bound_terms(
        self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None
    ) -> BoundTerms:
        """Return L_T, L_{t−1} and L_0 of the bound, in nats; arguments as of `elbo`."""
        y = self.likelihood_condition(x, y)

        def denoise(xt: Tensor, t: Tensor, row: Tensor) -> tuple[Tensor, Tensor | None]:
            x0, v = self.predict_x0(xt, t, None if y is None else y[row])
            return self.clip_predicted_x0(x0), v

        return vlb_terms(
            denoise,
            x,
            self.vlb_noise_levels,
            variance=self.variance,
            num_levels=self.num_discrete_levels,
            num_terms=num_terms,
            prior_std=self.prior_std,
        )

    def eps_mse(
        self, x: Tensor, y: Tensor | None = None, *, num_terms: int | None = None
    ) -> Tensor:
        """Return an estimate (B,) of the squared error of ε over all noise levels.

        All levels have the same weight. Diffusion classifiers compare classes by it, because the
        bound gives most weight to nearly clean levels, which do not reveal the class (Li et al.
        2023, https://arxiv.org/abs/2303.16203).

        Args:
            num_terms: how many random levels are evaluated; None evaluates all, or 1,000 of a path
                with any number of steps.
        """
        y = self.likelihood_condition(x, y)

        def denoise(xt: Tensor, t: Tensor, row: Tensor) -> Tensor:
            return self.predict_x0(xt, t, None if y is None else y[row])[0]

        return eps_mse(denoise, x, self.vlb_noise_levels, num_terms=num_terms)

    def ode_log_prob(
        self, x: Tensor, y: Tensor | None = None, *, steps: int = 100, num_probes: int = 1
    ) -> Tensor:
        """Return an estimate (B,) of log p(x), or of log p(x | y), in nats, by the ODE.

        See `genlab.models.diffusion.ode_likelihood.ode_log_prob`.
        """
        self.given_or_random_condition(len(x), y, 0.0 if y is None else 1.0)
        denoise = self.make_denoiser(y, 0.0 if y is None and self.conditional else 1.0)
        return ode_log_prob(
            denoise,
            x,
            self.ode_noise_levels(steps),
            prior_std=self.prior_std,
            num_probes=num_probes,
        )

    def ode_noise_std(self, *, steps: int = 100) -> float:
        """Return the standard deviation of the noise on the density of `ode_log_prob`.

        It is in data units. The ODE starts at the least noisy level of the path and not at the
        data.
        """
        first = self.ode_noise_levels(steps)[0]
        return first.sigma / first.alpha

    def ode_noise_levels(self, steps: int) -> list[NoiseLevel]:
        """Return the levels of the ODE, from the least noisy level to the noisiest."""
        return self.noise_levels(self.cap_sampling_steps(steps), "heun")[-2::-1]
