"""DDPM: Ho, Jain & Abbeel 2020, Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import UserError, did_you_mean
from genlab.models.diffusion.bound import bound
from genlab.models.diffusion.networks import PointDenoiser
from genlab.models.diffusion.samplers import ancestral, ddim, spread, strided
from genlab.models.diffusion.schedule import Schedule
from genlab.nn.unet import UNet
from genlab.spec import Batch, Fraction, NonNegative, Positive, Spec


class DDPM(nn.Module):
    """A diffusion model of images (U-Net) or points (MLP).

    Args:
        timesteps: T, the number of noise levels.
        schedule: β linear (the paper) or ᾱ a squared cosine (Nichol & Dhariwal 2021).
        objective: what the network predicts: the noise ε (the paper), x_0, or v (Salimans & Ho 2022).
        variance: σ² of p(x_{t−1} | x_t), in samples and in the bound: β or β̃ (section 3.2).
        clip: whether a step clips its guess of x_0 to the data's range; None: for images, as the authors' code does.
        channels, multipliers, blocks, attention, dropout: the U-Net of images, see `genlab.nn.unet.UNet`.
        hidden: widths of the MLP of points.
        conditional: learn p(x | y).
        drop_label: share of the labels withheld in training, so that one network is also the unconditional one that
            classifier-free guidance needs (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).
        guidance: weight g of the guided prediction u + g·(c − u): 0 unconditional, 1 conditional, more: guided.

    Raises:
        UserError: the data is neither images in [−1, 1] nor points, or has no classes for a conditional model.
    """

    samplers: tuple[str, ...] = ("ancestral", "ddim")

    def __init__(
        self,
        spec: Spec,
        *,
        timesteps: Positive = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        objective: Literal["eps", "x0", "v"] = "eps",
        variance: Literal["beta", "beta_tilde"] = "beta",
        clip: bool | None = None,
        channels: Positive = 128,
        multipliers: tuple[Positive, ...] = (1, 2, 2, 2),
        blocks: Positive = 2,
        attention: tuple[Positive, ...] = (16,),
        dropout: Fraction = 0.1,
        hidden: tuple[Positive, ...] = (128, 128, 128),
        conditional: bool = False,
        drop_label: Fraction = 0.1,
        guidance: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        if spec.kind not in ("image", "points"):
            raise UserError(f"ddpm models images and points, not {spec.kind}; choose another dataset")
        if spec.kind == "image" and tuple(spec.range) != (-1, 1):
            raise UserError(f"ddpm needs images in [-1, 1], not {list(spec.range)}; set dataset.range=[-1,1]")
        if conditional and not spec.classes:
            raise UserError("model.conditional=true needs labels, which this data has not; set model.conditional=false")
        self.spec = spec
        self.objective = objective
        self.variance = variance
        self.clip = spec.kind == "image" if clip is None else clip
        self.conditional = conditional
        self.drop_label = drop_label
        self.guidance = guidance
        classes = spec.classes if conditional else 0
        self.schedule = Schedule(schedule, timesteps)
        if spec.kind == "points":
            self.network = PointDenoiser(spec.dim, hidden=hidden, classes=classes)
        else:
            self.network = UNet(
                spec.shape,
                channels=channels,
                multipliers=multipliers,
                blocks=blocks,
                attention=attention,
                dropout=dropout,
                classes=classes,
            )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_simple (eq. 14), the mean squared error of the prediction over batch and elements."""
        x0, y = batch.x, batch.y if self.conditional else None
        t = torch.randint(self.schedule.T, (len(x0),), device=x0.device)
        eps = torch.randn_like(x0)
        if y is not None and self.drop_label:
            y = torch.where(torch.rand(len(y), device=y.device) < self.drop_label, self.spec.classes, y)
        prediction = self.network(self.schedule.q_sample(x0, t, eps), t, y)
        return {"loss": F.mse_loss(prediction, self.schedule.target(self.objective, x0, eps, t))}

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str = "ancestral",
        steps: int | None = None,
        eta: float | None = None,
        variance: Literal["beta", "beta_tilde"] | None = None,
        guidance: float | None = None,
    ) -> Tensor:
        """Draw n items (n, *shape), of the classes y (n,) if given; a conditional model draws classes evenly otherwise.

        Args:
            sampler: ancestral (Algorithm 2) or ddim.
            steps: network evaluations; None: all T.
            eta: noise of ddim, from 0 (none, the default) to 1.
            variance: σ² of ancestral; None: the model's own.
            guidance: weight of classifier-free guidance; None: the model's own.

        Raises:
            UserError: an unknown sampler, an option of the other one, or steps outside 1…T.
        """
        T = self.schedule.T
        steps = T if steps is None else steps
        if sampler not in self.samplers:
            known = ", ".join(self.samplers)
            raise UserError(f"ddpm has no sampler {sampler!r}{did_you_mean(sampler, self.samplers)}; it has {known}")
        if not 1 <= steps <= T:
            raise UserError(f"sampler.steps={steps} is outside 1…{T}, the steps that the model was trained on")
        if sampler == "ancestral" and eta is not None:
            raise UserError("sampler.eta belongs to sampler=ddim")
        if sampler == "ddim" and variance is not None:
            raise UserError("sampler.variance belongs to sampler=ancestral; sampler=ddim has sampler.eta")
        self.check(y, self.guidance if guidance is None else guidance)
        weight = next(self.network.parameters())
        if self.conditional and y is None:
            y = torch.randint(self.spec.classes, (n,), device=weight.device)
        denoise = self.denoiser(y, guidance)
        x = torch.randn(n, *self.spec.shape, device=weight.device, dtype=weight.dtype)
        if sampler == "ddim":
            x = ddim(denoise, x, self.schedule, times=strided(T, steps), eta=eta or 0.0)
        else:
            x = ancestral(denoise, x, self.schedule, times=spread(T, steps), variance=variance or self.variance)
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def elbo(self, x: Tensor, y: Tensor | None = None, *, terms: int | None = None) -> Tensor:
        """Return a random lower bound (B,) of log p(x), or of log p(x | y), in nats (eq. 5; eq. 13 for discrete data).

        Args:
            terms: how many of the T − 1 middle terms are evaluated, at random times; the result is unbiased for each
                number of them. None: all, which costs T network evaluations an item.
        """
        self.check(y, 0 if y is None else 1)

        def denoise(xt: Tensor, t: Tensor, row: Tensor) -> Tensor:
            return self.guess(xt, t, None if y is None else y[row])

        levels = self.spec.levels if self.spec.discrete and self.spec.kind == "image" else 0
        return bound(denoise, x, self.schedule, variance=self.variance, levels=levels, terms=terms)

    def denoiser(self, y: Tensor | None = None, guidance: float | None = None):
        """Return the function (x_t, t) -> x_0 that samplers ask, guided towards the classes y (n,)."""
        g = self.guidance if guidance is None else guidance
        if y is None or g == 1:
            return lambda x, t: self.guess(x, t, y)
        if g == 0:
            return lambda x, t: self.guess(x, t, None)
        pair = torch.cat([y, torch.full_like(y, self.spec.classes)])

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            c, u = self.network(torch.cat([x, x]), t, pair).chunk(2)
            return self.clipped(self.schedule.to_x0(self.objective, u + g * (c - u), x, t))

        return denoise

    def guess(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the expected x_0 (B, …) of x_t (B, …) at t (B,), or at one t (1,) for all."""
        return self.clipped(self.schedule.to_x0(self.objective, self.network(x, t, y), x, t))

    def clipped(self, x0: Tensor) -> Tensor:
        return x0.clamp(*self.spec.range) if self.clip else x0

    def check(self, y: Tensor | None, guidance: float) -> None:
        """Refuse labels or a guidance that the model was not trained for."""
        if not self.conditional and (y is not None or guidance not in (0, 1)):
            raise UserError("this ddpm was trained without labels; train it with model.conditional=true")
        if self.conditional and guidance != 1 and not self.drop_label:
            raise UserError("this ddpm has no unconditional half; train it with model.drop_label=0.1")
