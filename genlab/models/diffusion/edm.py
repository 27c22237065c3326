"""EDM: Karras, Aittala, Aila & Laine 2022, Elucidating the Design Space of Diffusion-Based Models, 2206.00364."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.networks import denoising_network
from genlab.models.diffusion.samplers import karras
from genlab.models.diffusion.schedule import CLEAN, Level, Spacing
from genlab.spec import Batch, Fraction, NonNegative, Positive, PositiveFloat, Spec


class EDM(Diffusion):
    """A diffusion model on x = x_0 + σ ε whose network sees and gives values of unit variance at every σ (table 1, "ours").

    Args:
        backbone: the denoising network; None: DDPM's U-Net for images, an MLP for points.
        sigma_data: standard deviation of a value of the data.
        p_mean, p_std: of ln σ in training.
        sigma_min, sigma_max, rho: the noise levels of sampling (eq. 5).
        steps: of sampling, where nobody says.
        clip: whether a step clips its guess of x_0 to the data's range; None: no, as in the paper.
        conditional, drop_label, guidance: see `genlab.models.diffusion.ddpm.DDPM`.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or has no classes for a conditional model.
    """

    samplers = ("heun", "euler", "dpm_solver", "ddim", "ancestral")

    def __init__(
        self,
        spec: Spec,
        *,
        backbone: Callable[..., Any] | None = None,
        sigma_data: PositiveFloat = 0.5,
        p_mean: float = -1.2,
        p_std: PositiveFloat = 1.2,
        sigma_min: PositiveFloat = 0.002,
        sigma_max: PositiveFloat = 80.0,
        rho: PositiveFloat = 7.0,
        steps: Positive = 18,
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
            clip=bool(clip),
            name="edm",
        )
        if sigma_min >= sigma_max:
            raise UserError(f"model.sigma_min={sigma_min} is not below model.sigma_max={sigma_max}")
        self.sigma_data, self.p_mean, self.p_std = sigma_data, p_mean, p_std
        self.sigma_min, self.sigma_max, self.rho, self.steps = sigma_min, sigma_max, rho, steps
        self.prior_std = sigma_max
        self.network = denoising_network(
            spec, backbone, outputs=spec.shape[0], classes=spec.classes if conditional else 0
        )

    # --- the objective ----------------------------------------------------------------------------------------------

    # eq. 8: E λ(σ) c_out(σ)² ‖F(c_in x; c_noise) − (x_0 − c_skip x)/c_out‖², where λ c_out² = 1
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of F's target, one noise level an item: ln σ ~ N(p_mean, p_std²)."""
        x0, y = batch.x, self.dropped(self.told(batch))
        sigma = (
            self.p_mean + self.p_std * torch.randn(len(x0), dtype=x0.dtype, device=x0.device)
        ).exp()
        x = x0 + wide(sigma, x0) * torch.randn_like(x0)
        c_skip, c_out, c_in, c_noise = self.preconditioning(sigma, x0)
        F = self.network(c_in * x, c_noise, y)
        return {"loss": (F - (x0 - c_skip * x) / c_out).square().mean()}

    def preconditioning(self, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return c_skip, c_out, c_in, shaped to multiply `like`, and c_noise (B,) of σ (B,) (table 1).

        c_noise is ln(σ)/4, in the thousandths in which the time embedding counts.
        """
        s, d = wide(sigma, like), self.sigma_data
        root = (s**2 + d**2).sqrt()
        return d**2 / root**2, s * d / root, 1 / root, 1000 * sigma.log() / 4

    # --- the path and the denoiser ----------------------------------------------------------------------------------

    def levels(
        self, steps: int, sampler: str = "heun", spacing: Spacing = "uniform"
    ) -> list[Level]:
        if spacing != "uniform":
            raise UserError(f"sampler.spacing={spacing} is for paths of even times, and edm's levels are even in their roots: "
                            "set model.rho")  # fmt: skip
        sigmas = karras(self.sigma_max, self.sigma_min, steps, self.rho)
        return [*(Level(s, 1.0, s) for s in sigmas), CLEAN]

    def noise_level(self, t: float) -> float:
        return t

    def level(self, noise: float) -> Level:
        return Level(noise, 1.0, noise)

    def answer(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, None]:
        c_skip, c_out, c_in, c_noise = self.preconditioning(t.to(x), x)
        return c_skip * x + c_out * self.network(c_in * x, c_noise, y), None  # eq. 7


def wide(t: Tensor, like: Tensor) -> Tensor:
    """Return t (B,) as (B, 1, …), to multiply `like`."""
    return t.view(-1, *[1] * (like.dim() - 1))
