"""Reconstruction error: the squared error of decode(encode(x)), summed per item."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.metrics.base import Row
from genlab.metrics.context import MetricContext
from genlab.spec import DataSpec


def row_names(context: MetricContext) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    is_applicable = {"encode", "decode"} <= context.abilities
    return ["reconstruction"] if is_applicable and context.spec.kind in ("image", "points") else []


@torch.no_grad()
def measure(context: MetricContext) -> list[Row]:
    """Return Σ (x − decode(encode(x)))² per item, averaged over n held-out items.

    Pixels are scaled to [0, 1], a byte over 255. Dequantized data is given to the model at the
    middle of each bin, so that its noise does not count.
    """
    model, spec, s = context.model, context.spec, context.settings
    batch = context.dataset.head(s.split, s.n, seed=s.seed)
    dtype = next(model.parameters()).dtype

    def error_of(x: Tensor) -> Tensor:
        x = x.to(context.device, dtype)
        reconstruction = model.decode(model.encode(x))
        return scaled_squared_error_per_item(
            x, reconstruction, scale=level_range_length(spec)
        ).cpu()

    errors = map_batched(error_of, move_to_bin_centers(batch.x, spec), batch_size=s.batch_size)
    value, error = context.mean_and_error(errors)
    return [
        Row(
            "reconstruction",
            value,
            "pixels²" if spec.kind == "image" else "units²",
            error=error,
            conditions={"n": len(errors), "split": s.split, "seed": s.seed},
        )
    ]


def move_to_bin_centers(x: Tensor, spec: DataSpec) -> Tensor:
    """Return items x with each dequantized value at the middle of its bin; others unchanged."""
    if not spec.dequantized:
        return x
    low, high = spec.range
    width = (high - low) / spec.levels
    return (low + (spec.dequantized_levels(x) + 0.5) * width).to(x.dtype)


def level_range_length(spec: DataSpec) -> float:
    """Return the distance from an image's lowest to its highest level; 1 for other data."""
    if spec.kind != "image":
        return 1.0
    low, high = spec.range
    scale = high - low
    if spec.dequantized:  # the middles of the outer bins are half a bin inside the range
        scale *= (spec.levels - 1) / spec.levels
    return scale


def scaled_squared_error_per_item(x: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return Σ ((x − y) / scale)² (B,) float64 of items x and y (B, *shape)."""
    return ((x - y).double() / scale).square().flatten(1).sum(1)
