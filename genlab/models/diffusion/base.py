"""What every diffusion model has: conditions, guided sampling by any sampler, and the deterministic code."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genlab.errors import UserError, did_you_mean
from genlab.models.diffusion.inverse_problems import Restoring
from genlab.models.diffusion.likelihood import Judging
from genlab.models.diffusion.samplers import SAMPLERS, Interval, heun, inside
from genlab.models.diffusion.schedule import Level, Spacing, Variance
from genlab.spec import Batch, Fraction, NonNegative, Positive, PositiveFloat, Spec


class Diffusion(Judging, Restoring, nn.Module, ABC):
    """A law of x_0 given by a denoiser E[x_0 | x_t, y] on a path x_t = α x_0 + σ ε from data to noise.

    A subclass has the path (`levels`, `noise_level`, `straight`, `prior_std`), the denoiser (`answer`), the objective (`loss`).
    """

    samplers: tuple[str, ...] = tuple(SAMPLERS)  # the first is the default
    steps: int  # of sampling, where nobody says
    most: int | None = None  # steps that the path has; None: any number
    straight = False  # the frame in which the ODE is followed, see `samplers.frame`
    differentiable = False  # `decode` follows the ODE without keeping what a gradient needs
    prompted = False  # whether its conditions are captions as bytes (B, L), and no classes
    prior_std = 1.0  # of the noise from which sampling starts
    between_codes: Literal["linear", "spherical"] = (
        "spherical"  # the way between two noises: DDIM (2010.02502), appendix D.5
    )
    variance: Variance = "beta"  # σ² of an ancestral step
    watch: Callable[[Sequence[Level]], Iterable[Level]] = (
        iter  # what a sampler goes through its levels with; may show how far
    )

    def __init__(
        self,
        spec: Spec,
        *,
        conditional: bool,
        drop_label: float,
        guidance: float,
        clip: bool | None,
        name: str,
    ) -> None:
        super().__init__()
        if spec.kind not in ("image", "points"):
            raise UserError(
                f"{name} models images and points, not {spec.kind}; choose another dataset"
            )
        free = (-math.inf, math.inf)  # an autoencoder's codes
        if spec.kind == "image" and tuple(spec.range) not in ((-1, 1), free):
            raise UserError(
                f"{name} needs images in [-1, 1], not {list(spec.range)}; set dataset.range=[-1,1]"
            )
        if conditional and not spec.classes:
            raise UserError(
                "model.conditional=true needs labels, which this data has not; set model.conditional=false"
            )
        self.spec, self.name = spec, name
        self.conditional, self.drop_label, self.guidance = conditional, drop_label, guidance
        self.clip = spec.kind == "image" if clip is None else clip

    # --- what a subclass has ------------------------------------------------------------------------------------------

    @abstractmethod
    def levels(
        self, steps: int, sampler: str = "ddim", spacing: Spacing = "uniform"
    ) -> list[Level]:
        """Return the noise levels of a sampler's steps, from the noisiest to the clean one; `spacing` is that of ddim's times."""

    @abstractmethod
    def answer(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return E[x_0 | x_t, y] (B, …) of x (B, …) at the times t (B,), or one t (1,) for all; and v (B, …), if it is learned.

        v is where the variance of a step back lies between β̃ (0) and β (1).
        """

    @abstractmethod
    def noise_level(self, t: float) -> float:
        """Return σ/α at the time t."""

    @abstractmethod
    def level(self, noise: float) -> Level:
        """Return the level at which σ/α is `noise`, or nearest to it."""

    @property
    def highest(self) -> float:
        """The noise level σ/α at which few steps begin: where an item's values, all told, drown as CIFAR-10's do in EDM's 80.

        Those are 3,072 values of deviation 1/2; the values of codes and points are of about 1. At most 80, at least 10.
        """
        deviation = 0.5 if self.spec.kind == "image" and math.isfinite(self.spec.range[0]) else 1.0
        return min(80.0, max(10.0, 80.0 * deviation / 0.5 * (self.spec.dim / 3072) ** 0.5))

    def at_most(self, steps: int) -> int:
        """Return so many steps, or as many as the path has."""
        return min(steps, self.most or steps)

    def guess(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return E[x_0 | x_t, y] (B, …), clipped where the model's guesses are."""
        return self.clipped(self.answer(x, t, y)[0])

    def clipped(self, x0: Tensor) -> Tensor:
        return x0.clamp(*self.spec.range) if self.clip else x0

    # --- conditions ---------------------------------------------------------------------------------------------------

    def told(self, batch: Batch) -> Tensor | None:
        """Return what the network is told of a batch's items (B, …): their classes, if it is conditional."""
        return batch.y if self.conditional else None

    def dropped(self, y: Tensor | None) -> Tensor | None:
        """Return the conditions y (B, …) of a training batch, the share `drop_label` of them withheld."""
        if y is None:
            return None
        if not self.drop_label:
            return y
        told = torch.rand(len(y), device=y.device) >= self.drop_label
        return torch.where(told.view(-1, *[1] * (y.dim() - 1)), y, self.untold(y))

    def untold(self, y: Tensor) -> Tensor:
        """Return what the network is told in the place of the conditions y (B, …) when it shall know nothing."""
        return torch.full_like(y, self.spec.classes)

    def denoiser(
        self,
        y: Tensor | None = None,
        guidance: float | None = None,
        *,
        interval: Interval | None = None,
        threshold: float | None = None,
        learned: bool = False,
    ) -> Callable[[Tensor, float], Any]:
        """Return the function (x, t) -> x_0 that samplers ask; with `learned` it gives (x_0, v).

        Args:
            y: conditions (n, …) of the rows of x.
            guidance: weight g of u + g·(c − u), of the unconditional guess u and the conditional c (Ho & Salimans 2022,
                https://arxiv.org/abs/2207.12598): 0 unconditional, 1 conditional, more: guided. None: the model's own.
            interval: the noise levels σ/α between which the guidance acts, elsewhere 1 (Kynkäänniemi et al. 2024,
                https://arxiv.org/abs/2404.07724); None: everywhere.
            threshold: clip each guess to this quantile of its own absolute values, if that is above 1, and scale it back
                into [−1, 1] (dynamic thresholding: Saharia et al. 2022, https://arxiv.org/abs/2205.11487); None: the plain clip.
        """
        g = self.guidance if guidance is None else guidance
        if threshold is not None and (
            self.spec.kind != "image" or tuple(self.spec.range) != (-1, 1)
        ):
            raise UserError(f"sampler.threshold squeezes guesses into [-1, 1], and the data of this {self.name} lies elsewhere; "
                            "leave it out")  # fmt: skip
        bounded = self.clipped if threshold is None else lambda x0: thresholded(x0, threshold)
        pair = None if y is None else torch.cat([y, self.untold(y)])

        def denoise(x: Tensor, t: float) -> Any:
            at = torch.full((1,), t, device=x.device)
            weight = g if inside(self.noise_level(t), interval) else 1.0
            if y is None or weight in (0, 1):
                x0, v = self.answer(x, at, y if weight else None)
            else:
                both, v = self.answer(torch.cat([x, x]), at, pair)
                c, u = both.chunk(2)
                x0, v = u + weight * (c - u), None if v is None else v[: len(x)]
            x0 = bounded(x0)
            return (x0, v) if learned else x0

        return denoise

    # --- samples ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        y: Tensor | None = None,
        *,
        sampler: str | None = None,
        steps: Positive | None = None,
        eta: Fraction | None = None,
        noise_interval: tuple[NonNegative, NonNegative] | None = None,
        spacing: Spacing | None = None,
        variance: Variance | None = None,
        churn: NonNegative | None = None,
        shift: PositiveFloat | None = None,
        guidance: NonNegative | None = None,
        interval: tuple[NonNegative, NonNegative] | None = None,
        threshold: Fraction | None = None,
    ) -> Tensor:
        """Draw n items (n, *shape), of the classes y (n,) if given; a conditional model draws classes evenly otherwise.

        Args:
            sampler: one of `samplers`; None: the model's own.
            steps: from noise to data; None: the model's own number.
            eta: noise of ddim and of dpm_solver, from 0 (none, the default) to 1.
            noise_interval: the noise levels σ/α between which eta or churn acts (S_tmin and S_tmax of Karras et al. 2022,
                algorithm 2); None: everywhere.
            spacing: of ddim's times: uniform (the default), or quadratic, with more of them where there is little noise.
            variance: σ² of ancestral; None: the model's own.
            churn: noise of heun, from 0 (none, the default) to 0.41.
            shift: of euler, how many times the noise of its levels is taken; 1 is the default.
            guidance, interval, threshold: see `denoiser`.

        Raises:
            UserError: an unknown sampler, an option of another one, an interval of nothing, or steps that the path has not.
        """
        for key, between in (("interval", interval), ("noise_interval", noise_interval)):
            if between is not None and between[0] >= between[1]:
                raise UserError(
                    f"sampler.{key}={list(between)} holds nothing; give the lower noise level first"
                )
        if noise_interval is not None and not (eta or churn):
            raise UserError("sampler.noise_interval says where noise is added, and none is; set sampler.eta or sampler.churn, "
                            "whichever the sampler has")  # fmt: skip
        y = self.asked(n, y, guidance)
        start = self.prior_std * torch.randn(
            n, *self.spec.shape, device=self.weight.device, dtype=self.weight.dtype
        )
        sampler = sampler or self.samplers[0]
        if spacing is not None and sampler != "ddim":
            raise UserError(f"sampler.spacing belongs to sampler=ddim, not to sampler={sampler}")
        noisy = {"eta": eta, "churn": churn, "noise_interval": noise_interval}
        follow = self.sampler(sampler, **noisy, variance=variance, shift=shift)
        learned = sampler == "ancestral" and (variance or self.variance) == "learned"
        denoise = self.denoiser(
            y, guidance, interval=interval, threshold=threshold, learned=learned
        )
        levels = self.levels(steps or self.steps, sampler, spacing or "uniform")
        return self.within(follow(denoise, start, self.watch(levels)))

    def sampler(self, name: str, **options: Any) -> Callable[..., Tensor]:
        """Return the sampler (denoise, x, levels) -> x_0 of that name, with the options that are not None.

        Raises:
            UserError: no such sampler, or an option of another one.
        """
        if name not in self.samplers:
            known = ", ".join(self.samplers)
            raise UserError(
                f"{self.name} has no sampler {name!r}{did_you_mean(name, self.samplers)}; it has {known}"
            )
        takes = signature(SAMPLERS[name]).parameters
        options = {key: value for key, value in options.items() if value is not None}
        for key in options:
            if key not in takes:
                whose = ", ".join(
                    other for other in self.samplers if key in signature(SAMPLERS[other]).parameters
                )
                raise UserError(f"sampler.{key} belongs to sampler={whose}, not to sampler={name}")
        if "straight" in takes:
            options["straight"] = self.straight
        if "level" in takes:
            options["level"] = self.level
        if "variance" in takes:
            options.setdefault("variance", self.variance)
        return lambda *given: SAMPLERS[name](*given, **options)

    def asked(self, n: int, y: Tensor | None, guidance: float | None = None) -> Tensor | None:
        """Return the conditions of n items: those given, or of a conditional model classes drawn evenly.

        Raises:
            UserError: labels or a guidance that the model was not trained for.
        """
        g = self.guidance if guidance is None else guidance
        if self.prompted:
            return (
                torch.zeros(
                    n, *self.spec.source.shape, dtype=torch.int64, device=self.weight.device
                )
                if y is None
                else y
            )
        if not self.conditional and (y is not None or g not in (0, 1)):
            raise UserError(
                f"this {self.name} was trained without labels; train it with model.conditional=true"
            )
        if g != 1:
            self.need_unconditional()
        if self.conditional and y is None:
            y = torch.randint(self.spec.classes, (n,), device=self.weight.device)
        return y

    def need_unconditional(self) -> None:
        """Refuse to leave the condition out where no training item was without one.

        Raises:
            UserError: the model is conditional, and none of its labels was withheld.
        """
        if self.conditional and not self.drop_label:
            raise UserError(
                f"this {self.name} has no unconditional half; train it with model.drop_label=0.1"
            )

    @property
    def weight(self) -> nn.Parameter:
        """A parameter, whose device and type the model's are."""
        return next(self.parameters())

    # --- the deterministic code ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, x: Tensor, *, steps: int = 100) -> Tensor:
        """Return the noise (B, *shape), of unit variance, from which the ODE leads to x (B, *shape), by Heun's method."""
        up = self.upwards(steps)  # x is put at the least noisy level
        code = heun(self.free(), x * up[0].alpha, up, straight=self.straight)
        return code / self.prior_std

    @torch.no_grad()
    def decode(self, z: Tensor, *, steps: int = 100) -> Tensor:
        """Return the item (B, *shape) to which the ODE leads from the noise z (B, *shape) of unit variance."""
        levels = self.levels(self.at_most(steps), "heun")
        return self.within(heun(self.free(), z * self.prior_std, levels, straight=self.straight))

    def prior(self, n: int) -> Tensor:
        """Draw n codes (n, *shape), of unit variance."""
        return torch.randn(n, *self.spec.shape, device=self.weight.device, dtype=self.weight.dtype)

    def free(self) -> Callable[[Tensor, float], Tensor]:
        """Return the denoiser that is told no condition."""
        self.need_unconditional()
        return self.denoiser(None, 0.0 if self.conditional or self.prompted else 1.0)

    def within(self, x: Tensor) -> Tensor:
        """Return x clipped to the range of images."""
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x


def thresholded(x0: Tensor, quantile: float) -> Tensor:
    """Return x_0 (B, …) clipped to ±s and divided by s, the quantile of an item's |x_0|, but at least 1."""
    s = x0.flatten(1).abs().quantile(quantile, 1).clamp_min(1.0).view(-1, *[1] * (x0.dim() - 1))
    return x0.clamp(-s, s) / s
