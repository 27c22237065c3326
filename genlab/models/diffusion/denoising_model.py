"""The denoiser of a diffusion model: path, conditions and classifier-free guidance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.models.diffusion.samplers import SAMPLERS, Denoiser, Interval, is_noise_in_interval
from genlab.models.diffusion.schedule import NoiseLevel, TimestepSpacing, Variance
from genlab.nn.broadcast import expand_like
from genlab.spec import Batch, DataSpec


class DenoisingModel(GenerativeModel, ABC):
    """A denoiser E[x_0 | x_t, y] on a path x_t = α x_0 + σ ε from data to noise.

    A subclass defines the path (`noise_levels`, `noise_to_signal`, `nearest_noise_level`,
    `straight_path`, `prior_std`), the denoiser (`predict_x0`) and the objective (`loss`).

    Args:
        conditional: learn p(x | y).
        label_dropout: share of the labels withheld in training.
        guidance: default weight of classifier-free guidance.
        clip_x0: whether predictions of x_0 are clipped to the data's range; None: for images.
        name: name of the model in error messages.
    """

    # The first sampler is the default.
    samplers = tuple(SAMPLERS)
    step_by_step = True
    # `decode` integrates the ODE without recording a graph.
    differentiable = False
    # The path between two noise codes: DDIM (2010.02502), appendix D.5.
    latent_interpolation: Literal["linear", "spherical"] = "spherical"

    # Default number of sampling steps.
    sampling_steps: int
    # Number of steps of the path; None if it can be divided into any number.
    max_steps: int | None = None
    # Whether the ODE is integrated in the coordinates of straight paths; see `ode_scale_and_time`.
    straight_path: bool = False
    # Standard deviation of the noise from which sampling starts.
    prior_std: float = 1.0
    # σ² of a step of the bound, and of ancestral sampling in all steps of the path.
    variance: Variance = "beta"

    def __init__(
        self,
        spec: DataSpec,
        *,
        conditional: bool,
        label_dropout: float,
        guidance: float,
        clip_x0: bool | None,
        name: str,
    ) -> None:
        super().__init__()
        if spec.kind not in ("image", "points"):
            raise UserError(
                f"{name} models images and points, not {spec.kind}; choose another dataset"
            )
        unbounded = (-math.inf, math.inf)  # codes of an autoencoder
        if spec.kind == "image" and tuple(spec.range) not in ((-1, 1), unbounded):
            raise UserError(
                f"{name} needs images in [-1, 1], not {list(spec.range)}; set dataset.range=[-1,1]"
            )
        if conditional and not spec.num_classes:
            raise UserError(
                "model.conditional=true requires labels, but this dataset has none; "
                "set model.conditional=false"
            )
        self.spec, self.name = spec, name
        self.conditional, self.label_dropout, self.guidance = conditional, label_dropout, guidance
        self.clip_x0 = spec.kind == "image" if clip_x0 is None else clip_x0

    # --- implemented by subclasses ----------------------------------------------------------------

    @abstractmethod
    def noise_levels(
        self, steps: int, sampler: str = "ddim", timestep_spacing: TimestepSpacing = "uniform"
    ) -> list[NoiseLevel]:
        """Return the noise levels of a sampler's steps, from the noisiest to the clean one.

        Args:
            timestep_spacing: spacing of the times of ddim.
        """

    @abstractmethod
    def predict_x0(
        self, x: Tensor, t: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return E[x_0 | x_t, y] (B, …) of x (B, …), and v (B, …) of a learned variance or None.

        Args:
            t: times (B,), or one time (1,) for all rows.

        v interpolates the variance of a reverse step between β̃ (0) and β (1).
        """

    @abstractmethod
    def noise_to_signal(self, t: float) -> float:
        """Return σ/α at the time t."""

    @abstractmethod
    def nearest_noise_level(self, noise_to_signal: float) -> NoiseLevel:
        """Return the level whose σ/α is nearest to the given one."""

    # --- the path ---------------------------------------------------------------------------------

    @property
    def start_noise_to_signal(self) -> float:
        """The σ/α at which second-order samplers start, between 10 and 80.

        At this level an item drowns in noise as CIFAR-10's items do at EDM's 80. CIFAR-10 has 3,072
        values of standard deviation 1/2; codes and points are taken to have standard deviation 1.
        """
        return min(80.0, max(10.0, 80.0 * self.data_std / 0.5 * (self.spec.dim / 3072) ** 0.5))

    @property
    def data_std(self) -> float:
        """The standard deviation that a value of the data is taken to have."""
        is_image = self.spec.kind == "image" and math.isfinite(self.spec.range[0])
        return 0.5 if is_image else 1.0

    @property
    def sampling_variance(self) -> Variance:
        """σ² of ancestral sampling: where any number of steps is usual, the posterior's."""
        return self.variance if self.max_steps else "posterior"

    def cap_sampling_steps(self, steps: int) -> int:
        """Return `steps`, or the number of steps of the path if that is smaller."""
        return min(steps, self.max_steps or steps)

    # --- predictions ------------------------------------------------------------------------------

    def predict_x0_clipped(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return E[x_0 | x_t, y] (B, …), clipped to the data's range if the model clips."""
        return self.clip_predicted_x0(self.predict_x0(x, t, y)[0])

    def clip_predicted_x0(self, x0: Tensor) -> Tensor:
        """Return x_0 (B, …), clipped to the data's range if the model clips its predictions."""
        return x0.clamp(*self.spec.range) if self.clip_x0 else x0

    def clip_samples_to_range(self, x: Tensor) -> Tensor:
        """Return samples x (B, …), clipped to the data's range if they are images."""
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def make_denoiser(
        self,
        y: Tensor | None = None,
        guidance: float | None = None,
        *,
        guidance_interval: Interval | None = None,
        dynamic_threshold: float | None = None,
        return_variance: bool = False,
    ) -> Denoiser:
        """Return the function (x, t) -> x_0 that samplers call; it may be guided and thresholded.

        Args:
            y: conditions (n, …) of the rows of x.
            guidance: weight g of u + g·(c − u), with the unconditional prediction u and the
                conditional prediction c (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598):
                0 unconditional, 1 conditional, above 1 guided. None uses the model's own.
            guidance_interval: the interval of σ/α in which guidance acts; outside of it the weight
                is 1 (Kynkäänniemi et al. 2024, https://arxiv.org/abs/2404.07724). None: everywhere.
            dynamic_threshold: quantile of dynamic thresholding, see `dynamic_thresholding`; None
                clips to the data's range.
            return_variance: the function returns (x_0, v) instead.
        """
        g = self.guidance if guidance is None else guidance
        if dynamic_threshold is not None and (
            self.spec.kind != "image" or tuple(self.spec.range) != (-1, 1)
        ):
            raise UserError(
                "sampler.dynamic_threshold scales predictions into [-1, 1], but the data of this "
                f"{self.name} has another range; remove it"
            )
        both_conditions = None if y is None else torch.cat([y, self.null_condition(y)])

        def denoise(x: Tensor, t: float) -> Any:
            times = torch.full((1,), t, device=x.device)
            weight = g if is_noise_in_interval(self.noise_to_signal(t), guidance_interval) else 1.0
            if y is None or weight in (0, 1):
                x0, v = self.predict_x0(x, times, y if weight else None)
            else:
                both, v = self.predict_x0(torch.cat([x, x]), times, both_conditions)
                c, u = both.chunk(2)
                x0, v = u + weight * (c - u), None if v is None else v[: len(x)]
            if dynamic_threshold is None:
                x0 = self.clip_predicted_x0(x0)
            else:
                x0 = dynamic_thresholding(x0, dynamic_threshold)
            return (x0, v) if return_variance else x0

        return denoise

    def make_unconditional_denoiser(self) -> Denoiser:
        """Return the denoiser without a condition."""
        self.require_label_dropout()
        return self.make_denoiser(None, 0.0 if self.conditional or self.text_conditional else 1.0)

    # --- conditions -------------------------------------------------------------------------------

    def batch_condition(self, batch: Batch) -> Tensor | None:
        """Return the conditions (B, …) of a batch: its classes if the model is conditional."""
        return batch.y if self.conditional else None

    def drop_condition_randomly(self, y: Tensor | None) -> Tensor | None:
        """Replace a random share `label_dropout` of y (B, …) by the null condition."""
        if y is None:
            return None
        if not self.label_dropout:
            return y
        keep = torch.rand(len(y), device=y.device) >= self.label_dropout
        return torch.where(expand_like(keep, y), y, self.null_condition(y))

    def null_condition(self, y: Tensor) -> Tensor:
        """Return the condition, shaped like y (B, …), that means "no condition"."""
        return torch.full_like(y, self.spec.num_classes)

    def given_or_random_condition(
        self, n: int, y: Tensor | None, guidance: float | None = None
    ) -> Tensor | None:
        """Return the conditions of n items: y if given, otherwise random classes if conditional.

        Raises:
            UserError: labels or a guidance that the model was not trained for.
        """
        g = self.guidance if guidance is None else guidance
        if self.text_conditional:
            if y is not None:
                return y
            assert self.spec.source is not None
            shape = (n, *self.spec.source.shape)
            return torch.zeros(shape, dtype=torch.int64, device=self.any_parameter.device)
        if not self.conditional and (y is not None or g not in (0, 1)):
            raise UserError(
                f"this {self.name} was trained without labels; train it with model.conditional=true"
            )
        if g != 1:
            self.require_label_dropout()
        if self.conditional and y is None:
            y = torch.randint(self.spec.num_classes, (n,), device=self.any_parameter.device)
        return y

    def require_label_dropout(self) -> None:
        """Raise an error if the model cannot predict without a condition.

        Raises:
            UserError: the model is conditional and was trained without label dropout.
        """
        if self.conditional and not self.label_dropout:
            raise UserError(
                f"this {self.name} was trained without label dropout, so it cannot predict without "
                "a label and classifier-free guidance is unavailable; train it with "
                "model.label_dropout=0.1"
            )

    @property
    def any_parameter(self) -> nn.Parameter:
        """One of the parameters, which has the model's device and dtype."""
        return next(self.parameters())

    def draw_noise(self, n: int) -> Tensor:
        """Draw standard normal noise (n, *shape) with the model's device and dtype."""
        like = self.any_parameter
        return torch.randn(n, *self.spec.shape, device=like.device, dtype=like.dtype)


def dynamic_thresholding(x0: Tensor, quantile: float) -> Tensor:
    """Return x_0 (B, …) clipped to ±s and divided by s.

    s is the quantile of an item's |x_0|, but at least 1 (dynamic thresholding: Saharia et al. 2022,
    https://arxiv.org/abs/2205.11487).
    """
    s = expand_like(x0.flatten(1).abs().quantile(quantile, 1).clamp_min(1.0), x0)
    return x0.clamp(-s, s) / s
