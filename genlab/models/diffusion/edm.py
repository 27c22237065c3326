"""EDM: Karras, Aittala, Aila & Laine 2022, 2206.00364.

Elucidating the Design Space of Diffusion-Based Generative Models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.networks import make_denoising_network
from genlab.models.diffusion.samplers import karras_sigmas
from genlab.models.diffusion.schedule import CLEAN, NoiseLevel, TimestepSpacing
from genlab.nn.broadcast import expand_like
from genlab.spec import Batch, DataSpec, Fraction, NonNegative, Positive, PositiveFloat


class EDM(Diffusion):
    """A diffusion model on x = x_0 + σ ε with preconditioning (table 1, column "ours").

    The inputs and outputs of the network have unit variance at every σ.

    Args:
        backbone: the denoising network; None uses DDPM's U-Net for images, an MLP for points.
        sigma_data: standard deviation of a value of the data.
        p_mean, p_std: mean and standard deviation of ln σ in training.
        c_noise_scale: factor of c_noise = ln(σ)/4, which the network receives as its time. It is 1
            in the paper.
        sigma_min, sigma_max, rho: the noise levels of sampling (eq. 5).
        sampling_steps: default number of sampling steps.
        clip_x0: whether a step clips its prediction of x_0 to the data's range; None disables it,
            as in the paper.
        conditional, label_dropout, guidance: see `genlab.models.diffusion.ddpm.DDPM`.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or lacks classes for a
            conditional model.
    """

    samplers = ("heun", "euler", "dpm_solver", "ddim", "ancestral")
    time_symbol = "σ"

    def __init__(
        self,
        spec: DataSpec,
        *,
        backbone: Callable[..., Any] | None = None,
        sigma_data: PositiveFloat = 0.5,
        p_mean: float = -1.2,
        p_std: PositiveFloat = 1.2,
        c_noise_scale: PositiveFloat = 1000.0,
        sigma_min: PositiveFloat = 0.002,
        sigma_max: PositiveFloat = 80.0,
        rho: PositiveFloat = 7.0,
        sampling_steps: Positive = 18,
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
            name="edm",
        )
        if sigma_min >= sigma_max:
            raise UserError(f"model.sigma_min={sigma_min} is not below model.sigma_max={sigma_max}")
        self.sigma_data, self.p_mean, self.p_std = sigma_data, p_mean, p_std
        self.c_noise_scale = c_noise_scale
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.sampling_steps = sampling_steps
        self.prior_std = sigma_max
        self.network = make_denoising_network(
            spec,
            backbone,
            outputs=spec.shape[0],
            num_classes=spec.num_classes if conditional else 0,
        )

    # --- the objective ----------------------------------------------------------------------------

    # eq. 8: E λ(σ) c_out(σ)² ‖F(c_in x; c_noise) − (x_0 − c_skip x)/c_out‖², where λ c_out² = 1
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of F's target, with one noise level per item.

        ln σ ~ N(p_mean, p_std²).
        """
        x0, y = batch.x, self.drop_condition_randomly(self.batch_condition(batch))
        normal = torch.randn(len(x0), dtype=x0.dtype, device=x0.device)
        sigma = (self.p_mean + self.p_std * normal).exp()
        x = x0 + expand_like(sigma, x0) * torch.randn_like(x0)
        c_skip, c_out, c_in, c_noise = self.preconditioning_coefficients(sigma, x0)
        F = self.network(c_in * x, c_noise, y)
        return {"loss": (F - (x0 - c_skip * x) / c_out).square().mean()}

    def preconditioning_coefficients(
        self, sigma: Tensor, like: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c_skip, c_out, c_in and c_noise of σ (B,) (table 1).

        The first three are shaped to multiply `like`; c_noise (B,) is ln(σ)/4 times
        `c_noise_scale`.
        """
        s, d = expand_like(sigma, like), self.sigma_data
        root = (s**2 + d**2).sqrt()
        c_noise = self.c_noise_scale * sigma.log() / 4
        return d**2 / root**2, s * d / root, 1 / root, c_noise

    @property
    def data_std(self) -> float:
        return self.sigma_data

    # --- the path and the denoiser ----------------------------------------------------------------

    def noise_levels(
        self, steps: int, sampler: str = "heun", timestep_spacing: TimestepSpacing = "uniform"
    ) -> list[NoiseLevel]:
        if timestep_spacing != "uniform":
            raise UserError(
                f"sampler.timestep_spacing={timestep_spacing} needs a path with evenly spaced "
                "times, but edm's levels are evenly spaced in their roots; set model.rho"
            )
        sigmas = karras_sigmas(self.sigma_max, self.sigma_min, steps, self.rho)
        return [*(NoiseLevel(s, 1.0, s) for s in sigmas), CLEAN]

    def noise_to_signal(self, t: float) -> float:
        return t

    def nearest_noise_level(self, noise_to_signal: float) -> NoiseLevel:
        return NoiseLevel(noise_to_signal, 1.0, noise_to_signal)

    def predict_x0(
        self, x: Tensor, t: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        c_skip, c_out, c_in, c_noise = self.preconditioning_coefficients(t.to(x), x)
        return c_skip * x + c_out * self.network(c_in * x, c_noise, y), None  # eq. 7
