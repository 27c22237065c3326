"""How much of an item a code keeps: the squared error of what comes back from it, summed over the item's values."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.metrics import Row
from genlab.metrics.context import Subject
from genlab.spec import Spec


def rows(subject: Subject) -> list[str]:
    """Return the names of the rows that `measure` gives."""
    fits = {"encode", "decode"} <= subject.abilities and subject.spec.kind in ("image", "points")
    return ["reconstruction"] if fits else []


@torch.no_grad()
def measure(subject: Subject) -> list[Row]:
    """Return Σ (x − decode(encode(x)))² an item, averaged over n held-out items; of images with pixels in [0, 1].

    A pixel is its byte over 255. Dequantised data is given to the model in the middle of each bin, so that no noise counts.
    """
    model, spec, s = subject.model, subject.spec, subject.settings
    batch = subject.dataset.take(s.split, s.n, seed=s.seed)
    dtype = next(model.parameters()).dtype
    errors = []
    for x in without_noise(batch.x, spec).split(s.batch_size):
        x = x.to(subject.device, dtype)
        errors.append(squared_error(x, model.decode(model.encode(x)), spec).cpu())
    error = torch.cat(errors).double()
    spread = error.std().item() / len(error) ** 0.5 if len(error) > 1 else None
    unit = "pixels²" if spec.kind == "image" else "units²"
    return [Row("reconstruction", error.mean().item(), unit, "exact", spread,
                conditions={"n": len(error), "split": s.split, "seed": s.seed})]  # fmt: skip


def without_noise(x: Tensor, spec: Spec) -> Tensor:
    """Return items x with each dequantised value in the middle of its bin; others as they are."""
    if not spec.dequantised:
        return x
    low, high = spec.range
    width = (high - low) / spec.levels
    level = ((x.double() - low) / width).floor().clamp(0, spec.levels - 1)
    return (low + (level + 0.5) * width).to(x.dtype)


def squared_error(x: Tensor, back: Tensor, spec: Spec) -> Tensor:
    """Return Σ (x − back)² (B,) of x and back (B, *shape), an image's with the lowest level at 0 and the highest at 1."""
    scale = 1.0
    if spec.kind == "image":
        low, high = spec.range
        scale = high - low
        if spec.dequantised:  # the middles of the outer bins are half a bin inside the range
            scale *= (spec.levels - 1) / spec.levels
    return ((x - back) / scale).flatten(1).square().sum(1)
