"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models.

https://arxiv.org/abs/2006.11239, with the improvements of Nichol & Dhariwal 2021,
https://arxiv.org/abs/2102.09672: cosine schedule and learned variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.networks import make_denoising_network
from genlab.models.diffusion.samplers import (
    ddim_timesteps,
    karras_sigmas,
    linspace_timesteps,
    make_timesteps_distinct,
    quadratic_timesteps,
)
from genlab.models.diffusion.schedule import NoiseLevel, NoiseSchedule, TimestepSpacing
from genlab.models.diffusion.vlb import vlb_term
from genlab.spec import Batch, DataSpec, Fraction, NonNegative, Positive, PositiveFloat


class DDPM(Diffusion):
    """A diffusion model of images or points with T noise levels.

    Args:
        backbone: the denoising network; None uses the paper's U-Net for images, an MLP for points.
        timesteps: T, the number of noise levels.
        noise_schedule: β linear (the paper), ᾱ a squared cosine (Nichol & Dhariwal 2021) or a
            sigmoid (Jabri et al. 2022).
        zero_terminal_snr: shift the schedule so that no signal is left at T (Lin et al. 2024).
        objective: what the network predicts: the noise ε (the paper), x_0, or v (Salimans & Ho
            2022).
        variance: σ² of p(x_{t−1} | x_t), in samples and in the bound: β or β̃ (section 3.2), or
            "learned": β^v β̃^(1−v) of a second output v of the network, trained by 0.001·L_vlb
            (Nichol & Dhariwal 2021, eqs. 15 and 16).
        rescale_timesteps: the network receives the times in units of T/1000, whatever T is, as in
            the authors' code of Nichol & Dhariwal 2021; otherwise it receives 0 … T − 1.
        min_snr_gamma: γ of the weight min(SNR, γ) of the squared error of x_0 (Hang et al. 2023,
            https://arxiv.org/abs/2303.09556, which uses 5); None: L_simple.
        clip_x0: whether a step clips its prediction of x_0 to the data's range; None: for images,
            as in the authors' code.
        conditional: learn p(x | y).
        label_dropout: share of the labels withheld in training, so that one network is also the
            unconditional one that classifier-free guidance needs (Ho & Salimans 2022,
            https://arxiv.org/abs/2207.12598).
        guidance: weight g of the guided prediction u + g·(c − u): 0 unconditional, 1 conditional,
            above 1 guided.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or lacks classes for a
            conditional model; or the objective is undefined, or its weight is 0, where there is no
            signal.
    """

    # In EDM's coordinates the noisiest of these levels is at infinity, or nearly.
    straight_path = True

    takes_missing_values = True

    def __init__(
        self,
        spec: DataSpec,
        *,
        backbone: Callable[..., Any] | None = None,
        timesteps: Positive = 1000,
        noise_schedule: Literal["linear", "cosine", "sigmoid"] = "linear",
        zero_terminal_snr: bool = False,
        objective: Literal["eps", "x0", "v"] = "eps",
        variance: Literal["beta", "beta_tilde", "learned"] = "beta",
        rescale_timesteps: bool = False,
        min_snr_gamma: PositiveFloat | None = None,
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
            clip_x0=clip_x0,
            name="ddpm",
        )
        if zero_terminal_snr and objective == "eps":
            raise UserError(
                "model.zero_terminal_snr=true leaves no signal at T, where ε does not determine "
                "x_0; set model.objective=v"
            )
        if zero_terminal_snr and min_snr_gamma is not None:
            raise UserError(
                "model.min_snr_gamma gives errors at T no weight if model.zero_terminal_snr=true, "
                "but sampling starts there; remove one of the two"
            )
        if spec.has_missing and variance == "learned":
            raise UserError(
                "model.variance=learned cannot be trained on rows with missing cells; set "
                "model.variance=beta"
            )
        self.objective, self.variance, self.min_snr_gamma = objective, variance, min_snr_gamma
        self.schedule = NoiseSchedule(
            noise_schedule, timesteps, zero_terminal_snr=zero_terminal_snr
        )
        self.sampling_steps = self.max_steps = timesteps
        self.time_scale = 1000 / timesteps if rescale_timesteps else 1
        outputs = spec.shape[0] * (2 if variance == "learned" else 1)
        self.network = make_denoising_network(
            spec, backbone, outputs=outputs, num_classes=spec.num_classes if conditional else 0
        )

    # --- the objective ----------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_simple (eq. 14), the mean squared error of the prediction.

        See `min_snr_gamma` for its weights and `variance` for the second term.
        """
        x0, known = batch.x, None
        # MissDiff (Ouyang et al. 2023, https://arxiv.org/abs/2307.00467, equation 4): the network
        # receives noise about 0 in place of a missing value, and its error is not counted
        if self.spec.has_missing:
            x0, known = x0.nan_to_num(), ~x0.isnan()
        y = self.drop_condition_randomly(self.batch_condition(batch))
        t = torch.randint(self.schedule.T, (len(x0),), device=x0.device)
        eps = torch.randn_like(x0)
        xt = self.schedule.q_sample(x0, t, eps)
        prediction, v = self.predict_target_and_variance(xt, t, y)
        target = self.schedule.training_target(self.objective, x0, eps, t)
        squares = (prediction - target).square().flatten(1)
        error = squares.mean(1) if known is None else (squares * known).sum(1) / known.sum(1)
        simple = (self.loss_weight(t) * error).mean()
        if v is None:
            return {"loss": simple}
        vlb = self.variance_loss(x0, xt, t, prediction.detach(), v)
        return {"loss": simple + 0.001 * vlb, "simple": simple, "vlb": vlb}

    def variance_loss(
        self, x0: Tensor, xt: Tensor, t: Tensor, prediction: Tensor, v: Tensor
    ) -> Tensor:
        """Return L_vlb (eq. 16 of Nichol & Dhariwal 2021) in bits per dimension.

        Only the variance learns from it. One of the T terms is evaluated per item.
        """
        predicted_x0 = self.clip_predicted_x0(
            self.schedule.x0_from_prediction(self.objective, prediction, xt, t)
        )
        nats = vlb_term(
            x0,
            predicted_x0,
            self.schedule.table_values_at("mean_x0", t, x0),
            self.schedule.table_values_at("beta_tilde", t, x0),
            self.schedule.learned_log_variance(v, t).exp(),
            num_levels=self.num_discrete_levels,
        )
        return self.schedule.T * nats.mean() / (self.spec.dim * math.log(2))

    def predict_target_and_variance(
        self, x: Tensor, t: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the network's prediction (B, …), and v (B, …) in [0, 1] of a learned variance."""
        out = self.network(x, self.time_scale * t, y)
        if self.variance != "learned":
            return out, None
        prediction, v = out.chunk(2, 1)
        return prediction, 0.5 * (v + 1)

    def loss_weight(self, t: Tensor) -> Tensor:
        """Return the weight (B,) of the squared error at t (B,).

        It is derived from the weight of the error of x_0, min(SNR, γ).
        """
        if self.min_snr_gamma is None:
            return torch.ones_like(t, dtype=self.any_parameter.dtype)
        snr = self.schedule.snr(t)
        x0_weight = snr.clamp(max=self.min_snr_gamma)
        if self.objective == "x0":
            return x0_weight
        return x0_weight / (snr if self.objective == "eps" else snr + 1)

    # --- the path and the denoiser ----------------------------------------------------------------

    def noise_levels(
        self, steps: int, sampler: str = "ddim", timestep_spacing: TimestepSpacing = "uniform"
    ) -> list[NoiseLevel]:
        T = self.schedule.T
        if not 1 <= steps <= T:
            raise UserError(
                f"sampler.steps={steps} is outside 1…{T}, the steps that the model was trained on"
            )
        if timestep_spacing == "quadratic":
            return self.schedule.noise_levels(quadratic_timesteps(T, steps))
        if sampler == "ddim" and self.schedule.float64_tables["alphas_bar"][-1] > 0:
            return self.schedule.noise_levels(
                ddim_timesteps(T, steps)
            )  # without T, as in the paper
        if sampler in ("ddim", "ancestral"):
            return self.schedule.noise_levels(linspace_timesteps(T, steps))
        highest = min(self.start_noise_to_signal, self.noise_to_signal(T - 1))
        ratios = karras_sigmas(highest, self.noise_to_signal(0), steps)
        times = [self.nearest_timestep(ratio) for ratio in ratios]
        # At T − 1 an error of ε causes one of x_0 that is thousands of times as large, and the next
        # step would keep it. If nothing clips x_0, sampling treats pure noise as an item at
        # `start_noise_to_signal`, as EDM does.
        if self.objective != "eps" or (self.clip_x0 and math.isfinite(self.spec.range[0])):
            times[0] = T - 1
        return self.schedule.noise_levels(make_timesteps_distinct(times))

    def noise_to_signal(self, t: float) -> float:
        ab = self.schedule.float64_tables["alphas_bar"][int(t)].item()
        return math.sqrt((1 - ab) / ab) if ab else math.inf

    def nearest_timestep(self, noise_to_signal: float) -> int:
        """Return the time whose σ/α is nearest to the given one, on a logarithmic scale."""
        ab = self.schedule.float64_tables["alphas_bar"]
        log_ratios = (1 - ab).sqrt().log() - ab.sqrt().log()
        return int((log_ratios - math.log(max(noise_to_signal, 1e-9))).abs().argmin())

    def nearest_noise_level(self, noise_to_signal: float) -> NoiseLevel:
        return self.schedule.noise_levels([self.nearest_timestep(noise_to_signal)])[0]

    def predict_x0(
        self, x: Tensor, t: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        t = t.long()
        prediction, v = self.predict_target_and_variance(x, t, y)
        return self.schedule.x0_from_prediction(self.objective, prediction, x, t), v
