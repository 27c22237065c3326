"""The states of a diffusion: reported by a sampler, or made by adding noise to items."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from genlab.abilities import Report, TrajectoryState
from genlab.models.diffusion.denoising_model import DenoisingModel
from genlab.models.diffusion.samplers import StepReport, add_noise_up_to
from genlab.models.diffusion.schedule import CLEAN, NoiseLevel

DEFAULT_FORWARD_STEPS = 100  # of a path that can be divided into any number


class TrajectoryMixin(DenoisingModel):
    """The states x_t of a diffusion, from noise to items and back."""

    # Name of the time that the network receives.
    time_symbol: ClassVar[str] = "t"

    # Each level adds its noise to the state of the level before, as in eq. 2 of Ho et al. 2020.
    @torch.no_grad()
    def forward_trajectory(self, report: Report, x: Tensor, *, steps: int | None = None) -> None:
        """Report the noisy states x_t (n, *shape) of items x (n, *shape).

        Args:
            steps: number of noise levels; None takes all of the path, or 100 if it can be divided
                into any number.
        """
        steps = self.cap_sampling_steps(steps or self.max_steps or DEFAULT_FORWARD_STEPS)
        now = CLEAN
        report(self.trajectory_state(now, x))
        for level in reversed(self.noise_levels(steps, "ancestral")[:-1]):
            x, now = add_noise_up_to(x, now, level, torch.randn_like)
            report(self.trajectory_state(level, x))

    def make_step_report(self, report: Report) -> StepReport:
        """Return the function that reports each step of a sampler as a state."""

        def report_step(level: NoiseLevel, x: Tensor, x0: Tensor) -> None:
            report(self.trajectory_state(level, x, x0))

        return report_step

    def trajectory_state(
        self, level: NoiseLevel, x: Tensor, guess: Tensor | None = None
    ) -> TrajectoryState:
        """Return the state x (n, *shape) at a noise level, with its signal-to-noise ratio.

        On a path of T steps the clean items have the time 0 and the noisiest ones T, as in the
        paper of DDPM.
        """
        numbers: dict[str, float | Tensor] = {}
        if level.sigma:
            if math.isclose(level.alpha**2 + level.sigma**2, 1):
                numbers["ᾱ"] = level.alpha**2
            numbers["SNR"] = (level.alpha / level.sigma) ** 2
        if self.max_steps:
            time = level.t + 1 if level.sigma else 0.0
            name = f"t = {time:,.0f}"
        else:
            time = level.t
            name = f"{self.time_symbol} = {time:.3g}"
        return TrajectoryState(time, name, x, guess=guess, numbers=numbers)
