"""What D is shown instead of the images themselves, so that it cannot learn few of them by heart; always differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Name = Literal["none", "diffaugment", "ada"]


class Augment(nn.Module):
    """Images (B, C, H, W) changed: `changed` has them in [−1, 1], as the papers do, whatever range the data has."""

    shards = 1  # of a joint batch; D sees one at a time

    def __init__(self, range: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        self.middle, self.half = (range[0] + range[1]) / 2, (range[1] - range[0]) / 2

    def forward(self, x: Tensor) -> Tensor:
        return self.middle + self.half * self.changed((x - self.middle) / self.half)

    def heed(self, real: Tensor) -> None:
        """Take note of D's logits (B,) of data."""


class Unchanged(Augment):
    """Images as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class DiffAugment(Augment):
    """Colour, translation by up to 1/8 and a hole of half the side: Zhao et al. 2020, https://arxiv.org/abs/2006.10738.

    What comes in at the borders and what fills the hole is 0, as the authors have it: a middle grey.
    """

    def changed(self, x: Tensor) -> Tensor:
        like, (height, width) = (len(x), 1, 1, 1), x.shape[2:]
        middle = lambda t, dims: t.mean(dims, keepdim=True)  # noqa: E731
        x = x + uniform(x, *like, low=-0.5, high=0.5)  # brightness
        x = middle(x, 1) + (x - middle(x, 1)) * uniform(x, *like, low=0, high=2)  # saturation
        x = middle(x, (1, 2, 3)) + (x - middle(x, (1, 2, 3))) * uniform(
            x, *like, low=0.5, high=1.5
        )  # contrast
        x = moved(x, *(whole(x, -(side // 8), side // 8) for side in (height, width)))
        rows, columns = (hidden(x, side) for side in (height, width))
        return x * ~(rows[:, :, None] & columns[:, None])[:, None]


class AdaptiveAugment(Augment):
    """Flips, turns, moves, stretches and colours, each with probability p, which follows how sure D is of the data.

    Karras et al. 2020, https://arxiv.org/abs/2006.06676: r_t = E[sign D(x)] (eq. 1) is held at `target`; p can go from
    0 to 1 in `speed` images. The pipeline is "bgc" of appendix B, with bilinear sampling in the place of its wavelet filter.
    """

    def __init__(
        self,
        range: tuple[float, float] = (-1.0, 1.0),
        *,
        target: float = 0.6,
        speed: float = 500_000,
    ) -> None:
        super().__init__(range)
        self.target, self.speed = target, speed
        self.register_buffer("running_p", torch.zeros(()))

    @torch.no_grad()
    def heed(self, real: Tensor) -> None:
        r_t = real.sign().mean()
        seen = (
            len(real) * self.shards
        )  # all shards move p, and the mean of where they move it is kept
        self.running_p.add_((r_t - self.target).sign() * seen / self.speed).clamp_(0, 1)

    def changed(self, x: Tensor) -> Tensor:
        with torch.autocast(
            x.device.type, enabled=False
        ):  # half precision would put pixels a tenth of a pixel astray
            return self.coloured(self.bent(x.to(torch.promote_types(x.dtype, torch.float32))))

    # Appendix B: one affine map for each image, the product of those that its coins chose.
    def bent(self, x: Tensor) -> Tensor:
        """Return images (B, C, H, W) flipped, turned, scaled, stretched and moved, mirrored at their borders."""
        b, sides = len(x), x.new_tensor([x.shape[3], x.shape[2]])
        one, zero, still = x.new_ones(b), x.new_zeros(b), x.new_zeros(b, 2)
        p_turn = 1 - (1 - self.running_p).sqrt()  # of either turn: 1 − (1 − p_turn)² = p
        half_circle = lambda: uniform(x, b, low=-math.pi, high=math.pi)  # noqa: E731
        stretch = lambda: torch.exp2(0.2 * torch.randn_like(one))  # noqa: E731
        maps = [
            scale(self.some(lambda: 1 - 2 * torch.randint_like(one, 2), one), one),  # mirror
            turn(self.some(lambda: torch.randint_like(one, 4) * (math.pi / 2), zero)),
            shift(
                self.some(lambda: (uniform(x, b, 2, low=-1 / 8, high=1 / 8) * sides).round(), still)
            ),
            scale(s := self.some(stretch, one), s),
            turn(self.some(half_circle, zero, p_turn)),
            scale(s := self.some(stretch, one), 1 / s),
            turn(self.some(half_circle, zero, p_turn)),
            shift(self.some(lambda: torch.randn_like(still) / 8 * sides, still)),
        ]
        return warped(x, reduce(torch.matmul, maps))

    def coloured(self, x: Tensor) -> Tensor:
        """Return images of another brightness and contrast, some as negatives, and three channels of other hues."""
        one = x.new_ones(len(x))
        zero = 0 * one
        each = lambda *how: self.some(*how)[:, None, None, None]  # noqa: E731
        x = x + each(lambda: 0.2 * torch.randn_like(one), zero)  # brightness
        x = x * each(lambda: torch.exp2(0.5 * torch.randn_like(one)), one)  # contrast
        x = luma_flipped(x, each(lambda: torch.randint_like(one, 2), zero))
        if x.shape[1] == 3:
            x = hue_turned(x, each(lambda: uniform(x, len(x), low=-math.pi, high=math.pi), zero))
            x = saturated(x, each(lambda: torch.exp2(torch.randn_like(one)), one))
        return x

    def some(self, draw: Callable[[], Tensor], default: Tensor, p: Tensor | None = None) -> Tensor:
        """Return what `draw` gives (B, …) where an image's coin of probability p falls so, else `default` (B, …)."""
        coins = torch.rand(len(default), *(1,) * (default.ndim - 1), device=default.device)
        return torch.where(coins < (self.running_p if p is None else p), draw(), default)


# Maps of the plane (B, 3, 3), of points (x, y, 1) in pixels from the image's middle; an inverse one is as likely as the map.
def scale(sx: Tensor, sy: Tensor) -> Tensor:
    """Return the maps that stretch by sx and sy (B,)."""
    return torch.diag_embed(torch.stack([sx, sy, torch.ones_like(sx)], 1))


def turn(angle: Tensor) -> Tensor:
    """Return the maps that turn by an angle (B,)."""
    sine, zero = angle.sin(), torch.zeros_like(angle)
    rows = [angle.cos(), -sine, zero], [sine, angle.cos(), zero], [zero, zero, zero + 1]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def shift(by: Tensor) -> Tensor:
    """Return the maps that move by (B, 2)."""
    return torch.cat([torch.eye(3, 2, dtype=by.dtype, device=by.device).expand(len(by), 3, 2),
                      F.pad(by, (0, 1), value=1)[:, :, None]], 2)  # fmt: skip


def warped(x: Tensor, where: Tensor) -> Tensor:
    """Return images (B, C, H, W) whose every pixel comes from where a map (B, 3, 3) puts it, mirrored at their borders."""
    half = x.new_tensor([x.shape[3] / 2, x.shape[2] / 2, 1])
    grid = F.affine_grid((where * half / half[:, None])[:, :2], list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


# Colours (B, C, H, W) about the luma axis v = (1, 1, 1)/√3: the luma vvᵀx is the channels' mean, the rest is chroma.
def luma(x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


def luma_flipped(x: Tensor, flipped: Tensor) -> Tensor:
    """Return (I − 2vvᵀ) x where `flipped` is 1."""
    return x - 2 * flipped * luma(x)


def hue_turned(x: Tensor, angle: Tensor) -> Tensor:
    """Return three channels turned about v by an angle: vvᵀx + cos θ (x − vvᵀx) + sin θ v × x (Rodrigues)."""
    across = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)  # v × x
    return luma(x) + angle.cos() * (x - luma(x)) + angle.sin() * across


def saturated(x: Tensor, by: Tensor) -> Tensor:
    """Return vvᵀx + s (x − vvᵀx)."""
    return luma(x) + by * (x - luma(x))


def uniform(x: Tensor, *shape: int, low: float, high: float) -> Tensor:
    return x.new_empty(shape).uniform_(low, high)


def whole(x: Tensor, low: int, high: int) -> Tensor:
    """Return a whole number for each image (B,), low ≤ n ≤ high."""
    return torch.randint(low, high + 1, (len(x),), device=x.device)


def hidden(x: Tensor, side: int) -> Tensor:
    """Return which places (B, side) of a side lie in a hole half as long, whose middle is anywhere, its ends too."""
    length = (side + 1) // 2
    first = (
        whole(x, 0, side - length % 2)[:, None] - length // 2
    )  # an even hole's middle lies between two places
    places = torch.arange(side, device=x.device)
    return (places >= first) & (places < first + length)


def moved(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Return images (B, C, H, W) moved by whole pixels (B,) each, 0 coming in: of a range of [−1, 1] a middle grey."""
    b, c, height, width = x.shape
    rows = (
        torch.arange(height, device=x.device) - down[:, None]
    )  # (B, H): where each row comes from
    columns = torch.arange(width, device=x.device) - right[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None
    ]  # (B, H, W)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    x = x.gather(2, rows[:, None, :, None].expand(b, c, height, width))
    return x.gather(3, columns[:, None, None].expand(b, c, height, width)) * inside[:, None]


AUGMENTS: dict[str, type[Augment]] = {
    "none": Unchanged,
    "diffaugment": DiffAugment,
    "ada": AdaptiveAugment,
}
