"""What is done to an image to make the source that a model must undo: the five operators of `dataset=pairs`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from genlab.errors import UserError
from genlab.spec import Fraction, NonNegative, Positive, Spec

Name = Literal["grey", "downsample", "noise", "mask", "edges"]
TASKS: dict[Name, str] = {  # operator -> what undoing it is called
    "grey": "colorize", "downsample": "superres", "noise": "denoise", "mask": "inpaint", "edges": "photo",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A map from images x (B, C, H, W) in the range of a Spec to their sources; all that is random is the generator's.

    grey        → (1, H, W): luminance, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)
    downsample  → (C, H/factor, W/factor): bicubic, antialiased
    noise       → (C, H, W): x + sigma · (high − low) · N(0, 1), which leaves the range
    mask        → (C + 1, H, W): hidden pixels at the middle of the range; the last channel is `high` where they are, else `low`
    edges       → (1, H, W): length of the luminance's gradient by Sobel's filters, `high` from a full step on

    Where the data has levels, sources of the first two and of the last are rounded to them, as a file would hold them.

    Raises:
        UserError: the images are already grey, or their sides are no multiple of the factor.
    """

    name: Name
    spec: Spec
    factor: Positive
    sigma: NonNegative
    mask: Literal["box", "half", "random"]
    share: Fraction

    def __post_init__(self) -> None:
        _, height, width = self.spec.shape
        if self.name == "grey" and self.spec.shape[0] == 1:
            raise UserError("dataset.operator=grey needs colour images, and these are grey; "
                            "choose dataset@dataset.of=cifar10, or another operator")  # fmt: skip
        if self.name == "downsample" and (height % self.factor or width % self.factor):
            raise UserError(f"dataset.factor={self.factor} does not divide images of {width}×{height}; "
                            f"set prepare.size={max(1, width // self.factor) * self.factor}")  # fmt: skip

    @property
    def source(self) -> Spec:
        """The Spec of what it makes."""
        channels, height, width = self.spec.shape
        small = (channels, height // self.factor, width // self.factor)
        shape = {"grey": (1, height, width), "edges": (1, height, width), "downsample": small,
                 "mask": (channels + 1, height, width), "noise": self.spec.shape}[self.name]  # fmt: skip
        levels = 0 if self.name == "noise" else self.spec.levels
        return replace(self.spec, shape=shape, levels=levels, classes=0)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the sources (B, …) of images x (B, C, H, W), of any height and width."""
        low, high = self.spec.range
        if self.name == "noise":
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            return x + self.sigma * (high - low) * noise
        if self.name == "mask":
            hidden = hide(x, self.mask, self.share, generator)  # (B, 1, H, W)
            seen = torch.where(hidden, (low + high) / 2, x)
            return torch.cat([seen, torch.where(hidden, high, low).to(x)], 1)
        made = (self.smooth(x) - low) / (high - low)
        if self.spec.levels and not self.spec.dequantised:
            top = self.spec.levels - 1
            made = made.mul(top).round().div(top)
        return made.clamp(0, 1) * (high - low) + low

    def smooth(self, x: Tensor) -> Tensor:
        """Return what grey, downsample or edges gives (B, …) of images x (B, C, H, W) before it is rounded and cut to the range.

        Linear in x but for a constant, if it is grey or downsample.
        """
        low, high = self.spec.range
        made = {"grey": grey, "downsample": lambda u: downsample(u, self.factor), "edges": edges}[
            self.name
        ]
        return made((x - low) / (high - low)) * (high - low) + low


def grey(x: Tensor) -> Tensor:
    """Return the luminance (B, 1, H, W) of images x (B, 3 or 1, H, W)."""
    if x.shape[1] == 1:
        return x
    return (x[:, :3] * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def downsample(x: Tensor, factor: int) -> Tensor:
    """Return images x (B, C, H, W) smaller by a whole factor that divides them: Keys 1981 with a = −0.5, antialiased."""
    size = (x.shape[-2] // factor, x.shape[-1] // factor)
    return interpolate(x, size=size, mode="bicubic", antialias=True)


def edges(x: Tensor) -> Tensor:
    """Return the length of the gradient (B, 1, H, W) of the luminance, 1 for a full step from black to white."""
    across = (
        x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    )  # Sobel's: 1 at a step of height 1
    filters = torch.stack([across, across.T]).unsqueeze(1)  # (2, 1, 3, 3)
    around = pad(grey(x), (1, 1, 1, 1), mode="replicate")
    return conv2d(around, filters).square().sum(1, keepdim=True).sqrt().clamp(max=1)


def hide(x: Tensor, mask: str, share: float, generator: torch.Generator) -> Tensor:
    """Return which pixels (B, 1, H, W) of each image are hidden.

    box: a rectangle of the image's proportions and `share` of its pixels, anywhere in it; half: the lower half;
    random: each pixel with probability `share`.
    """
    n, _, height, width = x.shape
    draw = lambda *shape: torch.rand(shape, device=x.device, generator=generator)  # noqa: E731
    if mask == "random":
        return draw(n, 1, height, width) < share
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    if mask == "half":
        return (rows >= height // 2).view(1, 1, height, 1).expand(n, 1, height, width)
    h, w = (round(side * math.sqrt(share)) for side in (height, width))
    u = draw(n, 2)
    top, left = (
        (u[:, 0] * (height - h + 1)).floor()[:, None],
        (u[:, 1] * (width - w + 1)).floor()[:, None],
    )  # (B, 1)
    tall, wide = (
        (rows >= top) & (rows < top + h),
        (columns >= left) & (columns < left + w),
    )  # (B, H), (B, W)
    return (tall[:, :, None] & wide[:, None, :]).unsqueeze(1)
