"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239.

With the improvements of Nichol & Dhariwal 2021, https://arxiv.org/abs/2102.09672: cosine schedule, learned variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.networks import denoising_network
from genlab.models.diffusion.samplers import apart, karras, quadratic, spread, strided
from genlab.models.diffusion.schedule import Level, Schedule, Spacing
from genlab.models.diffusion.vlb import step_nats
from genlab.spec import Batch, Fraction, NonNegative, Positive, PositiveFloat, Spec


class DDPM(Diffusion):
    """A diffusion model of T noise levels, of images or points.

    Args:
        backbone: the denoising network; None: the paper's U-Net for images, an MLP for points.
        timesteps: T, the number of noise levels.
        schedule: β linear (the paper), ᾱ a squared cosine (Nichol & Dhariwal 2021) or a sigmoid (Jabri et al. 2022).
        zero_snr: shift the schedule so that nothing of x_0 is left at T (Lin et al. 2024).
        objective: what the network predicts: the noise ε (the paper), x_0, or v (Salimans & Ho 2022).
        variance: σ² of p(x_{t−1} | x_t), in samples and in the bound: β or β̃ (section 3.2), or "learned": β^v β̃^(1−v) of
            a second output v of the network, trained by 0.001·L_vlb (Nichol & Dhariwal 2021, eqs. 15 and 16).
        min_snr: γ of the weight min(SNR, γ) of the squared error of x_0 (Hang et al. 2023, https://arxiv.org/abs/2303.09556;
            5 there); None: L_simple.
        clip: whether a step clips its guess of x_0 to the data's range; None: for images, as the authors' code does.
        conditional: learn p(x | y).
        drop_label: share of the labels withheld in training, so that one network is also the unconditional one that
            classifier-free guidance needs (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).
        guidance: weight g of the guided prediction u + g·(c − u): 0 unconditional, 1 conditional, more: guided.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or has no classes for a conditional model; ε, or an error
            that weighs nothing, where there is no signal.
    """

    straight = True  # in EDM's frame the last of these levels lies at infinity, or nearly

    def __init__(
        self,
        spec: Spec,
        *,
        backbone: Callable[..., Any] | None = None,
        timesteps: Positive = 1000,
        schedule: Literal["linear", "cosine", "sigmoid"] = "linear",
        zero_snr: bool = False,
        objective: Literal["eps", "x0", "v"] = "eps",
        variance: Literal["beta", "beta_tilde", "learned"] = "beta",
        min_snr: PositiveFloat | None = None,
        clip: bool | None = None,
        conditional: bool = False,
        drop_label: Fraction = 0.1,
        guidance: NonNegative = 1.0,
    ) -> None:
        super().__init__(
            spec,
            conditional=conditional,
            drop_label=drop_label,
            guidance=guidance,
            clip=clip,
            name="ddpm",
        )
        if zero_snr and objective == "eps":
            raise UserError(
                "model.zero_snr=true leaves no signal at T, where ε says nothing of x_0; set model.objective=v"
            )
        if zero_snr and min_snr is not None:
            raise UserError("model.min_snr gives an error at T no weight where model.zero_snr=true, and sampling starts there: "
                            "leave one out")  # fmt: skip
        self.objective, self.variance, self.min_snr = objective, variance, min_snr
        self.schedule = Schedule(schedule, timesteps, zero_snr=zero_snr)
        self.steps = self.most = timesteps
        outputs = spec.shape[0] * (2 if variance == "learned" else 1)
        self.network = denoising_network(
            spec, backbone, outputs=outputs, classes=spec.classes if conditional else 0
        )

    # --- the objective ----------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_simple (eq. 14), the mean squared error of the prediction over items and values; see `min_snr`, `variance`."""
        x0, y = batch.x, self.dropped(self.told(batch))
        t = torch.randint(self.schedule.T, (len(x0),), device=x0.device)
        eps = torch.randn_like(x0)
        xt = self.schedule.q_sample(x0, t, eps)
        prediction, v = self.predict(xt, t, y)
        error = (
            (prediction - self.schedule.target(self.objective, x0, eps, t))
            .square()
            .flatten(1)
            .mean(1)
        )
        simple = (self.weigh(t) * error).mean()
        if v is None:
            return {"loss": simple}
        # eq. 16: the variance alone learns from the bound, whose terms are T at a time's; in bits a dimension
        guess = self.clipped(self.schedule.to_x0(self.objective, prediction.detach(), xt, t))
        weight, beta_tilde = (self.schedule.at(key, t, x0) for key in ("mean_x0", "beta_tilde"))
        nats = step_nats(
            x0,
            guess,
            weight,
            beta_tilde,
            self.schedule.log_variance(v, t).exp(),
            levels=self.levels_of_data,
        )
        vlb = self.schedule.T * nats.mean() / (self.spec.dim * math.log(2))
        return {"loss": simple + 0.001 * vlb, "simple": simple, "vlb": vlb}

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the network's prediction (B, …), and the v (B, …) in [0, 1] of a learned variance."""
        out = self.network(x, t, y)
        if self.variance != "learned":
            return out, None
        prediction, v = out.chunk(2, 1)
        return prediction, 0.5 * (v + 1)

    def weigh(self, t: Tensor) -> Tensor:
        """Return the weight (B,) of the squared error of the prediction at t (B,), from that of x_0's, min(SNR, γ)."""
        if self.min_snr is None:
            return torch.ones_like(t, dtype=self.weight.dtype)
        snr = self.schedule.snr(t)
        of_x0 = snr.clamp(max=self.min_snr)
        return of_x0 / {"eps": snr, "x0": 1.0, "v": snr + 1}[self.objective]

    # --- the path and the denoiser ----------------------------------------------------------------------------------

    def levels(
        self, steps: int, sampler: str = "ddim", spacing: Spacing = "uniform"
    ) -> list[Level]:
        T = self.schedule.T
        if not 1 <= steps <= T:
            raise UserError(
                f"sampler.steps={steps} is outside 1…{T}, the steps that the model was trained on"
            )
        if spacing == "quadratic":
            return self.schedule.levels(quadratic(T, steps))
        if sampler == "ddim" and self.schedule.exact["alphas_bar"][-1] > 0:
            return self.schedule.levels(strided(T, steps))  # its paper's stride leaves T out
        if sampler in ("ddim", "ancestral"):
            return self.schedule.levels(spread(T, steps))
        noises = karras(min(self.highest, self.noise_level(T - 1)), self.noise_level(0), steps)
        times = [self.nearest(noise) for noise in noises]
        # at T − 1 an error of ε is one of x_0 thousands of times as large, and the step from there would keep it: where nothing
        # clips x_0, noise is taken for an item at `highest`, as EDM does
        if self.objective != "eps" or (self.clip and math.isfinite(self.spec.range[0])):
            times[0] = T - 1
        return self.schedule.levels(apart(times))

    def noise_level(self, t: float) -> float:
        ab = self.schedule.exact["alphas_bar"][int(t)].item()
        return math.sqrt((1 - ab) / ab) if ab else math.inf

    def nearest(self, noise: float) -> int:
        """Return the time whose σ/α is nearest to `noise`, in its logarithm."""
        ab = self.schedule.exact["alphas_bar"]
        return (
            ((1 - ab).sqrt().log() - ab.sqrt().log() - math.log(max(noise, 1e-9)))
            .abs()
            .argmin()
            .item()
        )

    def level(self, noise: float) -> Level:
        return self.schedule.levels([self.nearest(noise)])[0]

    def answer(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        t = t.long()
        prediction, v = self.predict(x, t, y)
        return self.schedule.to_x0(self.objective, prediction, x, t), v
