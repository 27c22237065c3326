"""Flow matching on straight paths: Lipman et al. 2023, 2210.02747.

The same objective as rectified flow: Liu et al. 2023, 2209.03003.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.networks import make_denoising_network
from genlab.models.diffusion.samplers import karras_sigmas
from genlab.models.diffusion.schedule import CLEAN, NoiseLevel, TimestepSpacing
from genlab.nn.broadcast import expand_like
from genlab.spec import Batch, DataSpec, Fraction, NonNegative, Positive

# σ/α of the last step of second-order samplers, as in EDM.
MIN_NOISE_TO_SIGNAL = 0.002


class FlowMatching(Diffusion):
    """The velocity field of x = (1 − t) x_0 + t ε: data at t = 0, noise at t = 1.

    Args:
        backbone: the network of the velocity; None uses DDPM's U-Net for images, an MLP for
            points.
        time_distribution: distribution of the training times: "uniform", or "logit_normal", which
            favors the middle (Esser et al. 2024, https://arxiv.org/abs/2403.03206).
        sampling_steps: default number of sampling steps.
        clip_x0: whether a step clips its prediction of x_0 to the data's range; None disables it,
            as in the papers.
        conditional, label_dropout, guidance: see `genlab.models.diffusion.ddpm.DDPM`.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or lacks classes for a
            conditional model.
    """

    samplers = ("euler", "heun", "dpm_solver", "ddim", "ancestral")
    straight_path = True

    def __init__(
        self,
        spec: DataSpec,
        *,
        backbone: Callable[..., Any] | None = None,
        time_distribution: Literal["uniform", "logit_normal"] = "uniform",
        sampling_steps: Positive = 50,
        clip_x0: bool | None = None,
        conditional: bool = False,
        label_dropout: Fraction = 0.1,
        guidance: NonNegative = 1.0,
    ) -> None:
        super().__init__(
            spec,
            conditional=conditional,
            label_dropout=label_dropout,
            guidance=guidance,
            clip_x0=bool(clip_x0),
            name="flow_matching",
        )
        self.time_distribution, self.sampling_steps = time_distribution, sampling_steps
        self.network = make_denoising_network(
            spec,
            backbone,
            outputs=spec.shape[0],
            num_classes=spec.num_classes if conditional else 0,
        )

    # eq. 23 of Lipman et al. (eq. 1 of Liu et al.): E ‖v(x_t, t) − (ε − x_0)‖²
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity, at one random time per item."""
        x0, y = batch.x, self.drop_condition_randomly(self.batch_condition(batch))
        t = torch.rand(len(x0), dtype=x0.dtype, device=x0.device)
        if self.time_distribution == "logit_normal":
            t = torch.randn_like(t).sigmoid()
        eps, t_ = self.paired_noise(batch), expand_like(t, x0)
        v = self.network((1 - t_) * x0 + t_ * eps, 1000 * t, y)
        return {"loss": (v - (eps - x0)).square().mean()}

    def paired_noise(self, batch: Batch) -> Tensor:
        """Return the noise (B, …) at the other end of each item's path, drawn independently."""
        return torch.randn_like(batch.x)

    def noise_levels(
        self, steps: int, sampler: str = "euler", timestep_spacing: TimestepSpacing = "uniform"
    ) -> list[NoiseLevel]:
        if sampler in ("heun", "dpm_solver"):
            # with evenly spaced times the last steps are too large for thin structures
            ratios = karras_sigmas(self.start_noise_to_signal, MIN_NOISE_TO_SIGNAL, steps)[1:]
            return [NoiseLevel(1.0, 0.0, 1.0), *map(self.nearest_noise_level, ratios), CLEAN]
        power = 2 if timestep_spacing == "quadratic" else 1
        times = [(1 - i / steps) ** power for i in range(steps)]
        return [*(NoiseLevel(t, 1 - t, t) for t in times), CLEAN]

    def noise_to_signal(self, t: float) -> float:
        return t / (1 - t) if t < 1 else math.inf

    def nearest_noise_level(self, noise_to_signal: float) -> NoiseLevel:
        t = noise_to_signal / (1 + noise_to_signal)
        return NoiseLevel(t, 1 - t, t)

    def predict_x0(
        self, x: Tensor, t: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        t_ = expand_like(t.to(x), x)
        return x - t_ * self.network(x, 1000 * t.to(x), y), None
