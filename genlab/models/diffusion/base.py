"""The base class of diffusion models: samples, trajectories and the deterministic code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from genlab.abilities import Report
from genlab.console import track
from genlab.errors import UserError, did_you_mean
from genlab.models.diffusion.inverse_problems import InverseProblemMixin
from genlab.models.diffusion.likelihood import LikelihoodMixin
from genlab.models.diffusion.samplers import SAMPLERS, heun, ignore_step, normal_std_ratio
from genlab.models.diffusion.schedule import CLEAN, NoiseLevel, TimestepSpacing, Variance
from genlab.models.diffusion.trajectory import TrajectoryMixin
from genlab.spec import Fraction, NonNegative, Positive, PositiveFloat

# Factor by which the standard deviation of samples of normal data may be off without a note.
MAX_STD_RATIO = 1.25


class Diffusion(TrajectoryMixin, LikelihoodMixin, InverseProblemMixin):
    """A generative model given by a denoiser E[x_0 | x_t, y] on a path from data to noise.

    See `genlab.models.diffusion.denoising_model.DenoisingModel` for what a subclass implements.
    """

    @cached_property
    def _noted_steps(self) -> set[str]:
        """The samplers with their options and numbers of steps that were checked."""
        return set()

    # --- samples ----------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str | None = None,
        steps: Positive | None = None,
        eta: Fraction | None = None,
        noise_sigma_interval: tuple[NonNegative, NonNegative] | None = None,
        timestep_spacing: TimestepSpacing | None = None,
        variance: Variance | None = None,
        churn_gamma: NonNegative | None = None,
        time_shift: PositiveFloat | None = None,
        guidance: NonNegative | None = None,
        guidance_interval: tuple[NonNegative, NonNegative] | None = None,
        dynamic_threshold: Fraction | None = None,
        start: Tensor | None = None,
        report: Report | None = None,
    ) -> Tensor:
        """Draw n items (n, *shape), of the classes y (n,) if given, otherwise of random classes.

        Args:
            sampler: one of `samplers`; None uses the first.
            steps: number of steps from noise to data; None uses the model's own number.
            eta: noise of ddim and of dpm_solver, from 0 (none, the default) to 1.
            noise_sigma_interval: the interval of σ/α in which eta or churn_gamma acts (S_tmin and
                S_tmax of Karras et al. 2022, algorithm 2); None: everywhere.
            timestep_spacing: of ddim: uniform (the default), or quadratic, with more steps where
                there is little noise.
            variance: σ² of ancestral; None uses the model's own, or "posterior" (see
                `posterior_variance`) where the path can be divided into any number of steps.
            churn_gamma: noise of heun, from 0 (none, the default) to 0.41.
            time_shift: of euler, the factor of the σ/α of its levels; 1 is the default.
            guidance, guidance_interval, dynamic_threshold: see `make_denoiser`.
            start: noise (n, *shape) of unit variance to start from; None draws it.
            report: receives the states of the sampler, and last the items.

        Raises:
            UserError: an unknown sampler, an option of another sampler, an empty interval, or more
                steps than the path has.
        """
        sampler = sampler or self.samplers[0]
        refuse_empty_interval("guidance_interval", guidance_interval)
        refuse_empty_interval("noise_sigma_interval", noise_sigma_interval)
        if noise_sigma_interval is not None and not (eta or churn_gamma):
            raise UserError(
                "sampler.noise_sigma_interval limits the noise that a sampler adds, but none is "
                "added; set sampler.eta or sampler.churn_gamma, whichever the sampler supports"
            )
        y = self.given_or_random_condition(n, y, guidance)
        noise = self.prior_std * (self.draw_noise(n) if start is None else start)
        if timestep_spacing is not None and sampler != "ddim":
            raise UserError(
                f"sampler.timestep_spacing belongs to sampler=ddim, not to sampler={sampler}"
            )
        options = {
            "eta": eta,
            "churn_gamma": churn_gamma,
            "noise_sigma_interval": noise_sigma_interval,
            "variance": variance,
            "time_shift": time_shift,
        }
        integrate = self.make_sampler(sampler, **options)
        denoise = self.make_denoiser(
            y,
            guidance,
            guidance_interval=guidance_interval,
            dynamic_threshold=dynamic_threshold,
            return_variance=sampler == "ancestral"
            and (variance or self.sampling_variance) == "learned",
        )
        levels = self.noise_levels(
            steps or self.sampling_steps, sampler, timestep_spacing or "uniform"
        )
        if (variance or self.sampling_variance) != "learned":
            self.note_inaccurate_steps(sampler, options, levels)
        report_step = ignore_step if report is None else self.make_step_report(report)
        x0 = integrate(denoise, noise, track(levels, "sampling", unit="steps"), report=report_step)
        x0 = self.clip_samples_to_range(x0)
        if report is not None:
            report(self.trajectory_state(CLEAN, x0))
        return x0

    def trajectory(
        self,
        report: Report,
        n: int,
        y: Tensor | None = None,
        *,
        start: Tensor | None = None,
        **sampler: Any,
    ) -> Tensor:
        """Draw n items (n, *shape) as `sample` does, and report x_t and the guess of x_0."""
        return self.sample(n, y, start=start, report=report, **sampler)

    # --- samplers ---------------------------------------------------------------------------------

    def make_sampler(self, name: str, **options: Any) -> Callable[..., Tensor]:
        """Return a sampler (denoise, x, levels) -> x_0 with the options that are not None.

        Raises:
            UserError: an unknown sampler, or an option of another sampler.
        """
        if name not in self.samplers:
            raise UserError(
                f"{self.name} does not support sampler={name}{did_you_mean(name, self.samplers)}; "
                f"available: {', '.join(self.samplers)}"
            )
        sampler = SAMPLERS[name]
        chosen = {key: value for key, value in options.items() if value is not None}
        for key in chosen:
            if key not in sampler.options:
                owners = [other for other in self.samplers if key in SAMPLERS[other].options]
                raise UserError(
                    f"sampler.{key} belongs to sampler={', '.join(owners)}, not to sampler={name}"
                )
        if "variance" in sampler.options:
            chosen.setdefault("variance", self.sampling_variance)
        by_model = {
            "data_std": self.data_std,
            "straight_path": self.straight_path,
            "nearest_noise_level": self.nearest_noise_level,
        }
        chosen |= {key: by_model[key] for key in sampler.model_options}

        def integrate(*args: Any, **further: Any) -> Tensor:
            return sampler.function(*args, **chosen, **further)

        return integrate

    def note_inaccurate_steps(
        self, sampler: str, options: dict[str, Any], levels: list[NoiseLevel]
    ) -> None:
        """Print a note, once, if so few steps cannot even sample a normal distribution.

        The steps of a path that a model was trained with are its own and are not checked.
        """
        steps = len(levels) - 1
        key = f"{sampler} {steps} {options}"
        if steps == self.max_steps or key in self._noted_steps:
            return
        self._noted_steps.add(key)
        ratio = normal_std_ratio(
            self.make_sampler(sampler, **options),
            levels,
            lambda t: self.nearest_noise_level(self.noise_to_signal(t)),
            data_std=self.data_std,
            prior_std=self.prior_std,
            adds_noise="noise" in signature(SAMPLERS[sampler].function).parameters,
        )
        if not 1 / MAX_STD_RATIO <= ratio <= MAX_STD_RATIO:
            print(
                f"sampler={sampler} in {steps} step{'s' * (steps > 1)} is inaccurate: even samples "
                f"of normal data would have {ratio:.3g} times its standard deviation; set a larger "
                "sampler.steps",
                file=sys.stderr,
            )

    # --- the deterministic code -------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        """Return the noise (B, *shape), of unit variance, that the ODE maps to x (B, *shape).

        Args:
            steps: of Heun's method; None: 100.
        """
        levels = self.ode_noise_levels(steps or 100)
        start = x * levels[0].alpha  # x is placed at the least noisy level
        code = heun(
            self.make_unconditional_denoiser(),
            start,
            track(levels, "encoding", unit="steps"),
            straight_path=self.straight_path,
        )
        return code / self.prior_std

    @torch.no_grad()
    def decode(self, z: Tensor, *, steps: int = 100) -> Tensor:
        """Return the items (B, *shape) to which the ODE maps noise z (B, *shape) of variance 1."""
        levels = self.noise_levels(self.cap_sampling_steps(steps), "heun")
        denoise = self.make_unconditional_denoiser()
        start = z * self.prior_std
        return self.clip_samples_to_range(
            heun(
                denoise,
                start,
                track(levels, "decoding", unit="steps"),
                straight_path=self.straight_path,
            )
        )

    def prior(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n codes (n, *shape) of unit variance; they do not depend on the classes y."""
        return self.draw_noise(n)


def refuse_empty_interval(name: str, interval: tuple[float, float] | None) -> None:
    """Raise an error if an interval of noise levels is empty."""
    if interval is not None and interval[0] >= interval[1]:
        raise UserError(
            f"sampler.{name}={list(interval)} is empty: the lower bound must come first"
        )
