"""Degradation operators: how `dataset=pairs` makes the source of an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from genlab.errors import UserError
from genlab.spec import DataSpec, Fraction, NonNegative, Positive

OperatorName = Literal["gray", "downsample", "noise", "mask", "edges"]
TASKS: dict[OperatorName, str] = {  # operator -> the task of undoing it
    "gray": "colorize",
    "downsample": "superres",
    "noise": "denoise",
    "mask": "inpaint",
    "edges": "photo",
}
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G and B: ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A map from images x (B, C, H, W) in the range of a DataSpec to their sources.

    gray        → (1, H, W): luminance, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)
    downsample  → (C, H/factor, W/factor): bicubic, antialiased
    noise       → (C, H, W): x + sigma · (high − low) · N(0, 1), which leaves the range
    mask        → (C + 1, H, W): hidden pixels at the middle of the range; the last channel is
                  `high` where pixels are hidden, else `low`
    edges       → (1, H, W): length of the luminance's gradient by Sobel's filters, clamped at
                  `high` for a full step

    If the data has levels, the results of gray, downsample and edges are rounded to them, as a file
    would store them. All randomness comes from the generator of the call.

    Raises:
        UserError: the images are already gray, or their sides are not multiples of the factor.
    """

    name: OperatorName
    spec: DataSpec
    factor: Positive
    sigma: NonNegative
    mask: Literal["box", "half", "random"]
    mask_ratio: Fraction

    def __post_init__(self) -> None:
        _, height, width = self.spec.shape
        if self.name == "gray" and self.spec.shape[0] == 1:
            raise UserError(
                "dataset.operator=gray requires color images, and these are gray; "
                "choose dataset@dataset.base=cifar10, or another operator"
            )
        if self.name == "downsample" and (height % self.factor or width % self.factor):
            side = max(1, width // self.factor) * self.factor
            raise UserError(
                f"dataset.factor={self.factor} does not divide images of {width}×{height}; "
                f"set preprocess.size={side}"
            )

    @property
    def source_spec(self) -> DataSpec:
        """The DataSpec of the operator's results."""
        channels, height, width = self.spec.shape
        shapes = {
            "gray": (1, height, width),
            "edges": (1, height, width),
            "downsample": (channels, height // self.factor, width // self.factor),
            "mask": (channels + 1, height, width),
            "noise": self.spec.shape,
        }
        has_levels = self.name != "noise"
        return replace(
            self.spec,
            shape=shapes[self.name],
            levels=self.spec.levels if has_levels else 0,
            dequantized=self.spec.dequantized and has_levels,
            num_classes=0,
            class_names=(),
        )

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sources (B, …) of images x (B, C, H, W), of any height and width."""
        low, high = self.spec.range
        if self.name == "noise":
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            return x + self.sigma * (high - low) * noise
        if self.name == "mask":
            hidden = random_hidden_mask(x, self.mask, self.mask_ratio, generator)  # (B, 1, H, W)
            visible = torch.where(hidden, (low + high) / 2, x)
            return torch.cat([visible, torch.where(hidden, high, low).to(x)], 1)
        source = (self.apply_unrounded(x) - low) / (high - low)
        if self.spec.levels and not self.spec.dequantized:
            top = self.spec.levels - 1
            source = source.mul(top).round().div(top)
        return source.clamp(0, 1) * (high - low) + low

    def apply_unrounded(self, x: Tensor) -> Tensor:
        """Return gray, downsample or edges (B, …) of images x, neither rounded nor clamped.

        For gray and downsample it is linear in x, up to a constant.
        """
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "gray": to_gray,
            "downsample": lambda u: downsample(u, self.factor),
            "edges": sobel_edge_strength,
        }
        low, high = self.spec.range
        return functions[self.name]((x - low) / (high - low)) * (high - low) + low


def to_gray(x: Tensor) -> Tensor:
    """Return the luminance (B, 1, H, W) of images x (B, 3 or 1, H, W)."""
    if x.shape[1] == 1:
        return x
    return (x[:, :3] * x.new_tensor(LUMA_WEIGHTS).view(3, 1, 1)).sum(1, keepdim=True)


def downsample(x: Tensor, factor: int) -> Tensor:
    """Return images x (B, C, H, W) reduced by an integer factor that divides their sides.

    Bicubic with a = −0.5 (Keys 1981), antialiased.
    """
    size = (x.shape[-2] // factor, x.shape[-1] // factor)
    return interpolate(x, size=size, mode="bicubic", antialias=True)


def sobel_edge_strength(x: Tensor) -> Tensor:
    """Return the length (B, 1, H, W) of the luminance's gradient, 1 for a full step."""
    # Sobel's filter, scaled to 1 at a step of height 1
    across = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    filters = torch.stack([across, across.T]).unsqueeze(1)  # (2, 1, 3, 3)
    padded = pad(to_gray(x), (1, 1, 1, 1), mode="replicate")
    return conv2d(padded, filters).square().sum(1, keepdim=True).sqrt().clamp(max=1)


def random_hidden_mask(
    x: Tensor, mask: str, mask_ratio: float, generator: torch.Generator
) -> Tensor:
    """Return which pixels (B, 1, H, W) of each image are hidden.

    Args:
        mask: "box": a rectangle with the image's proportions and `mask_ratio` of its pixels,
            anywhere in it; "half": the lower half; "random": each pixel with that probability.
    """
    n, _, height, width = x.shape
    if mask == "random":
        return torch.rand(n, 1, height, width, device=x.device, generator=generator) < mask_ratio
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    if mask == "half":
        return (rows >= height // 2).view(1, 1, height, 1).expand(n, 1, height, width)
    h, w = (round(side * math.sqrt(mask_ratio)) for side in (height, width))
    u = torch.rand(n, 2, device=x.device, generator=generator)
    top = (u[:, 0] * (height - h + 1)).floor()[:, None]  # (B, 1)
    left = (u[:, 1] * (width - w + 1)).floor()[:, None]
    in_rows = (rows >= top) & (rows < top + h)  # (B, H)
    in_columns = (columns >= left) & (columns < left + w)  # (B, W)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)
