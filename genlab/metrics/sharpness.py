"""Sharpness of images: the energy of their second differences, relative to their contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics.base import NotMeasurableError, Row, mean_and_error
from genlab.metrics.context import MetricContext

MIN_SIDE = 3  # pixels, so that there is an inner pixel
WHITE_NOISE_ENERGY = 20.0  # 4² + 4 · 1², of the Laplacian of white noise with variance 1


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    spec = context.spec
    is_applicable = spec.kind == "image" and min(spec.shape[1:]) >= MIN_SIDE
    return ["sharpness"] if is_applicable and "sample" in context.abilities else []


def measure(context: MetricContext) -> list[Row]:
    """Return the mean sharpness of n samples; compare it with that of real images.

    Lower than real images means blurred, higher means noisy. See `sharpness_per_image`.

    Raises:
        NotMeasurableError: all samples are constant.
    """
    values = sharpness_per_image(context.items("generated").x)
    real = sharpness_per_image(context.items("real").x)
    used = values[values.isfinite()]
    if not len(used):
        raise NotMeasurableError("all samples are constant images, so they have no sharpness")
    value, error = mean_and_error(used)
    conditions = context.make_conditions()
    if len(used) < len(values):
        conditions["constant images left out"] = len(values) - len(used)
    return [
        Row(
            "sharpness",
            value,
            "of white noise",
            "estimate",
            error,
            real_vs_real=real[real.isfinite()].mean().item(),
            better="neither",
            conditions=conditions,
        )
    ]


def sharpness_per_image(x: Tensor) -> Tensor:
    """Return mean (Δx)² / (20 Var x) (N,) of images (N, C, H, W), NaN for constant images.

    Δx = 4 x_ij − x_{i−1,j} − x_{i+1,j} − x_{i,j−1} − x_{i,j+1} at the inner pixels. White noise has
    1, a blurred image less. The measure does not depend on brightness and contrast.
    """
    x = x.double()
    inner = x[..., 1:-1, 1:-1]
    neighbors = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    energy = (4 * inner - neighbors).square().flatten(1).mean(1)
    variance = x.flatten(2).var(2, correction=0).mean(1)
    ratio = energy / (WHITE_NOISE_ENERGY * variance)
    return torch.where(variance > 0, ratio, torch.nan)
