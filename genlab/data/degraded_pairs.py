"""Pairs of images out of any image set, with an operator that makes each image's source."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.data.dataset import Dataset
from genlab.data.degradations import TASKS, Name, Operator
from genlab.errors import UserError
from genlab.spec import Batch, Fraction, NonNegative, Positive


@dataclass(kw_only=True, eq=False)
class Pairs(Dataset):
    """Images x of another set, with sources that an operator makes of them: `cond = operator(x)`.

    Sources are made of prepared images, on the device; what is random in them is drawn anew in training, and the same in
    every pass in order.

    Args:
        of: the set of images.
        operator: grey | downsample | noise | mask | edges; see `Operator`.
        factor: of downsample.
        sigma: of noise, in ranges of the data.
        mask, share: of mask: box | half | random, and the share of the pixels that box and random hide.
        crop: side of the patches that are cut out, anywhere in training, else in the middle; None: whole images.
        reverse: whether the operator's result is the target, and the image its source.
    """

    of: Any
    operator: Name = "edges"
    factor: Positive = 2
    sigma: NonNegative = 0.1
    mask: Literal["box", "half", "random"] = "box"
    share: Fraction = 0.25
    crop: Positive | None = None
    reverse: bool = False

    def __post_init__(self) -> None:
        whole = self.of.spec
        if whole.kind != "image":
            raise UserError(f"dataset=pairs is of images, and {self.of.name} has {whole.kind}")
        if self.crop and self.crop > min(whole.shape[1:]):
            sides = "×".join(str(side) for side in reversed(whole.shape[1:]))
            raise UserError(
                f"dataset.crop={self.crop} is larger than the images of {self.of.name} ({sides})"
            )
        shape = (whole.shape[0], self.crop, self.crop) if self.crop else whole.shape
        image = replace(whole, shape=shape, source=None, task="")
        self.apply = Operator(
            name=self.operator,
            spec=image,
            factor=self.factor,
            sigma=self.sigma,
            mask=self.mask,
            share=self.share,
        )
        made = self.apply.source
        if self.reverse:
            spec = replace(
                made, classes=image.classes, source=replace(image, classes=0), task=self.operator
            )
        else:
            spec = replace(image, source=made, task=TASKS[self.operator])
        self.name = f"{self.of.name} ({self.operator})"
        self.workers = self.of.workers
        self.hold(spec, self.of.splits, self.of.prepare, missing=self.of.missing)

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if self.crop:
            x = patches(x, self.crop, generator if augment else None)
        x = self.of.made(x, y, generator, augment=augment).x
        source = self.apply(x, generator)
        return Batch(source, y, x) if self.reverse else Batch(x, y, source)

    def shown(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        """Return the targets that `take` returns as bytes uint8 (n, C, H, W)."""
        if not self.crop and not self.reverse:
            return self.of.shown(split, n, seed=seed)
        batch, (low, high) = self.take(split, n, seed=seed), self.spec.range
        return Batch(
            ((batch.x - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8), batch.y
        )

    def report(self) -> list[str]:
        return self.of.report()


def patches(
    x: Tensor, height: int, generator: torch.Generator | None, width: int | None = None
) -> Tensor:
    """Return a patch (B, …, height, width) of each image x (B, …, H, W): anywhere in it, or with no generator the middle.

    Without `width` it is square.
    """
    width = width or height
    free = torch.tensor([x.shape[-2] - height, x.shape[-1] - width], device=x.device)
    if generator is None:
        top, left = (free // 2).tolist()
        return x[..., top : top + height, left : left + width]
    at = (torch.rand(len(x), 2, device=x.device, generator=generator) * (free + 1)).long()  # (B, 2)
    rows = at[:, 0, None, None] + torch.arange(height, device=x.device)[:, None]  # (B, height, 1)
    columns = at[:, 1, None, None] + torch.arange(width, device=x.device)  # (B, 1, width)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.movedim((-2, -1), (1, 2))[batch, rows, columns].movedim((1, 2), (-2, -1))
