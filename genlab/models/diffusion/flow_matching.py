"""Flow matching on straight paths: Lipman et al. 2023, 2210.02747; Liu et al. 2023 (rectified flow), 2209.03003."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.models.diffusion.base import Diffusion
from genlab.models.diffusion.networks import denoising_network
from genlab.models.diffusion.samplers import karras
from genlab.models.diffusion.schedule import CLEAN, Level, Spacing
from genlab.spec import Batch, Fraction, NonNegative, Positive, Spec

LOWEST = 0.002  # σ/α of the last step of a sampler of second order, as EDM's


class FlowMatching(Diffusion):
    """The velocity field of x = (1 − t) x_0 + t ε: data at t = 0, noise at t = 1.

    Args:
        backbone: the network of the velocity; None: DDPM's U-Net for images, an MLP for points.
        times: of training: "uniform", or "logit_normal", which dwells in the middle (Esser et al. 2024,
            https://arxiv.org/abs/2403.03206).
        steps: of sampling, where nobody says.
        clip: whether a step clips its guess of x_0 to the data's range; None: no, as in the papers.
        conditional, drop_label, guidance: see `genlab.models.diffusion.ddpm.DDPM`.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or has no classes for a conditional model.
    """

    samplers = ("euler", "heun", "dpm_solver", "ddim", "ancestral")
    straight = True

    def __init__(
        self,
        spec: Spec,
        *,
        backbone: Callable[..., Any] | None = None,
        times: Literal["uniform", "logit_normal"] = "uniform",
        steps: Positive = 50,
        clip: bool | None = None,
        conditional: bool = False,
        drop_label: Fraction = 0.1,
        guidance: NonNegative = 1.0,
    ) -> None:
        name = "flow_matching"
        super().__init__(
            spec,
            conditional=conditional,
            drop_label=drop_label,
            guidance=guidance,
            clip=bool(clip),
            name=name,
        )
        self.times, self.steps = times, steps
        self.network = denoising_network(
            spec, backbone, outputs=spec.shape[0], classes=spec.classes if conditional else 0
        )

    # eq. 23 of Lipman et al. (eq. 1 of Liu et al.): E ‖v(x_t, t) − (ε − x_0)‖²
    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean squared error of the velocity, one time an item."""
        x0, y = batch.x, self.dropped(self.told(batch))
        t = torch.rand(len(x0), dtype=x0.dtype, device=x0.device)
        if self.times == "logit_normal":
            t = torch.randn_like(t).sigmoid()
        eps, at = self.noise(batch), t.view(-1, *[1] * (x0.dim() - 1))
        v = self.network((1 - at) * x0 + at * eps, 1000 * t, y)
        return {"loss": (v - (eps - x0)).square().mean()}

    def noise(self, batch: Batch) -> Tensor:
        """Return the noise (B, …) at the other end of each item's path: drawn independently of it."""
        return torch.randn_like(batch.x)

    def levels(
        self, steps: int, sampler: str = "euler", spacing: Spacing = "uniform"
    ) -> list[Level]:
        if sampler in (
            "heun",
            "dpm_solver",
        ):  # of even times the last steps are too wide for what is thin; EDM's levels are not
            return [
                Level(1.0, 0.0, 1.0),
                *map(self.level, karras(self.highest, LOWEST, steps)[1:]),
                CLEAN,
            ]
        times = [(1 - i / steps) ** (2 if spacing == "quadratic" else 1) for i in range(steps)]
        return [*(Level(t, 1 - t, t) for t in times), CLEAN]

    def noise_level(self, t: float) -> float:
        return t / (1 - t) if t < 1 else math.inf

    def level(self, noise: float) -> Level:
        t = noise / (1 + noise)
        return Level(t, 1 - t, t)

    def answer(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, None]:
        at = t.to(x).view(-1, *[1] * (x.dim() - 1))
        return x - at * self.network(x, 1000 * t.to(x), y), None
