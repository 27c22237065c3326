"""What D is shown instead of the images themselves, so that it cannot learn few of them by heart; always differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Name = Literal["none", "diffaugment", "ada"]


class Unchanged(nn.Module):
    """Images as they are."""

    shards = 1  # of a joint batch; D sees one at a time

    def forward(self, x: Tensor) -> Tensor:
        return x

    def heed(self, real: Tensor) -> None:
        """Take note of D's logits (B,) of data."""


class DiffAugment(Unchanged):
    """Colour, translation by up to 1/8 and a hole of half the side: Zhao et al. 2020, https://arxiv.org/abs/2006.10738.

    What comes in at the borders and what fills the hole is 0, as the authors have it: of images in [−1, 1] a middle grey.
    """

    def forward(self, x: Tensor) -> Tensor:
        like, (height, width) = (len(x), 1, 1, 1), x.shape[2:]
        middle = lambda t, dims: t.mean(dims, keepdim=True)  # noqa: E731
        x = x + uniform(x, *like, low=-0.5, high=0.5)  # brightness
        x = middle(x, 1) + (x - middle(x, 1)) * uniform(x, *like, low=0, high=2)  # saturation
        x = middle(x, (1, 2, 3)) + (x - middle(x, (1, 2, 3))) * uniform(x, *like, low=0.5, high=1.5)  # contrast
        x = moved(x, *(whole(x, -(side // 8), side // 8) for side in (height, width)))
        rows, columns = (hidden(x, side) for side in (height, width))
        return x * ~(rows[:, :, None] & columns[:, None])[:, None]


class AdaptiveAugment(Unchanged):
    """Turns, moves, stretches and colours, each with probability p, which follows how sure D is of the data.

    Karras et al. 2020, https://arxiv.org/abs/2006.06676: r_t = E[sign D(x)] (eq. 1) is held at `target`; p can go from
    0 to 1 in `speed` images.
    """

    def __init__(self, *, target: float = 0.6, speed: float = 500_000) -> None:
        super().__init__()
        self.target, self.speed = target, speed
        self.register_buffer("running_p", torch.zeros(()))

    @torch.no_grad()
    def heed(self, real: Tensor) -> None:
        r_t = real.sign().mean()
        seen = len(real) * self.shards  # all shards move p, and the mean of where they move it is kept
        self.running_p.add_((r_t - self.target).sign() * seen / self.speed).clamp_(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.coloured(self.bent(x))

    # Appendix B: one affine map for each image, the product of those that its coins chose.
    def bent(self, x: Tensor) -> Tensor:
        """Return images (B, C, H, W) flipped, turned, scaled, stretched and moved, mirrored at their borders."""
        b = len(x)
        one, zero = x.new_ones(b), x.new_zeros(b)
        row = lambda *v: torch.stack(v, -1)  # noqa: E731
        scale = lambda sx, sy: row(row(sx, zero), row(zero, sy))  # noqa: E731
        turn = lambda a: row(row(a.cos(), a.sin()), row(-a.sin(), a.cos())).transpose(1, 2)  # noqa: E731
        s, t = (self.some(x, lambda: torch.exp2(0.2 * torch.randn_like(one)), one) for _ in range(2))
        maps = [
            scale(self.some(x, lambda: 1 - 2 * torch.randint_like(one, 2), one), one),  # mirror
            turn(self.some(x, lambda: torch.randint_like(one, 4), zero) * (math.pi / 2)),
            scale(s, s),
            scale(t, 1 / t),
            turn(self.some(x, lambda: uniform(x, b, low=-math.pi, high=math.pi), zero)),
        ]
        shift = row(*(self.some(x, lambda: 0.25 * torch.randn_like(one), zero) for _ in range(2)))  # of half a side
        linear = maps[0]
        for m in maps[1:]:
            linear = linear @ m
        grid = F.affine_grid(torch.cat([linear, shift[:, :, None]], 2), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def coloured(self, x: Tensor) -> Tensor:
        """Return images with brightness, contrast and, of three channels, saturation changed."""
        one = x.new_ones(len(x))
        each = lambda v: v[:, None, None, None]  # noqa: E731
        x = x + each(self.some(x, lambda: 0.2 * torch.randn_like(one), 0 * one))
        x = x * each(self.some(x, lambda: torch.exp2(0.5 * torch.randn_like(one)), one))
        grey = x.mean(1, keepdim=True)
        return grey + (x - grey) * each(self.some(x, lambda: torch.exp2(torch.randn_like(one)), one))

    def some(self, x: Tensor, draw: Callable[[], Tensor], default: Tensor) -> Tensor:
        """Return what `draw` gives (B,) where a coin of probability p falls so, else `default`."""
        return torch.where(torch.rand(len(x), device=x.device) < self.running_p, draw(), default)


def uniform(x: Tensor, *shape: int, low: float, high: float) -> Tensor:
    return x.new_empty(shape).uniform_(low, high)


def whole(x: Tensor, low: int, high: int) -> Tensor:
    """Return a whole number for each image (B,), low ≤ n ≤ high."""
    return torch.randint(low, high + 1, (len(x),), device=x.device)


def hidden(x: Tensor, side: int) -> Tensor:
    """Return which places (B, side) of a side lie in a hole half as long, whose middle is anywhere, its ends too."""
    length = (side + 1) // 2
    first = whole(x, 0, side - length % 2)[:, None] - length // 2  # an even hole's middle lies between two places
    places = torch.arange(side, device=x.device)
    return (places >= first) & (places < first + length)


def moved(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return images (B, C, H, W) moved by whole pixels (B,) each, 0 coming in: of a range of [−1, 1] a middle grey."""
    b, c, height, width = x.shape
    rows = torch.arange(height, device=x.device) - down[:, None]  # (B, H): where each row comes from
    columns = torch.arange(width, device=x.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]  # (B, H, W)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    x = x.gather(2, rows[:, None, :, None].expand(b, c, height, width))
    return x.gather(3, columns[:, None, None].expand(b, c, height, width)) * inside[:, None]


AUGMENTS: dict[str, type[Unchanged]] = {"none": Unchanged, "diffaugment": DiffAugment, "ada": AdaptiveAugment}
