"""Differentiable augmentation of D's images, so that D does not memorize a small dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.broadcast import expand_like

AugmentName = Literal["none", "diffaugment", "ada"]


class Augmentation(nn.Module):
    """Base class: images (B, C, H, W) of any range to augmented images of the same range.

    `transform` receives the images scaled to [−1, 1], as in the papers.
    """

    num_shards = 1  # of a joint batch; D receives one of them at a time

    def __init__(self, range: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        low, high = range
        self.center, self.half_range = (low + high) / 2, (high - low) / 2

    def forward(self, x: Tensor) -> Tensor:
        augmented = self.transform((x - self.center) / self.half_range)
        return self.center + self.half_range * augmented

    def transform(self, x: Tensor) -> Tensor:
        """Return augmented images (B, C, H, W) of images x in [−1, 1]."""
        raise NotImplementedError

    def adapt_probability(self, real: Tensor) -> None:
        """Adapt to D's logits (B,) of real data; only adaptive augmentation does."""


class NoAugmentation(Augmentation):
    """The images themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class DiffAugment(Augmentation):
    """Color, translation by up to 1/8 and a cutout of half the side.

    Zhao et al. 2020, https://arxiv.org/abs/2006.10738. Borders and cutouts are filled with 0, as in
    the authors' code: a middle gray.
    """

    def transform(self, x: Tensor) -> Tensor:
        one_each, (height, width) = (len(x), 1, 1, 1), x.shape[2:]
        x = x + draw_uniform(x, *one_each, low=-0.5, high=0.5)  # brightness
        mean = x.mean(1, keepdim=True)
        x = mean + (x - mean) * draw_uniform(x, *one_each, low=0, high=2)  # saturation
        mean = x.mean((1, 2, 3), keepdim=True)
        x = mean + (x - mean) * draw_uniform(x, *one_each, low=0.5, high=1.5)  # contrast
        down = draw_integer_per_image(x, -(height // 8), height // 8)
        right = draw_integer_per_image(x, -(width // 8), width // 8)
        x = translate_pixels(x, down, right)
        rows, columns = cutout_mask_1d(x, height), cutout_mask_1d(x, width)
        return x * ~(rows[:, :, None] & columns[:, None])[:, None]


class AdaptiveAugmentation(Augmentation):
    """ADA: geometric and color changes, each with a probability p that adapts to overfitting.

    Karras et al. 2020, https://arxiv.org/abs/2006.06676: p rises if r_t = E[sign D(x)] (eq. 1) is
    above `target` and falls if it is below. The pipeline is "bgc" of appendix B, with bilinear
    sampling in place of its wavelet filter.

    Args:
        ramp_images: number of images in which p can go from 0 to 1.
    """

    depends_on_batch = "adaptive augmentation"

    running_p: Tensor  # ()

    def __init__(
        self,
        range: tuple[float, float] = (-1.0, 1.0),
        *,
        target: float = 0.6,
        ramp_images: float = 500_000,
    ) -> None:
        super().__init__(range)
        self.target, self.ramp_images = target, ramp_images
        self.register_buffer("running_p", torch.zeros(()))

    @torch.no_grad()
    def adapt_probability(self, real: Tensor) -> None:
        r_t = real.sign().mean()
        # every shard moves p by a whole batch's step; the mean over the shards is kept
        num_images = len(real) * self.num_shards
        self.running_p.add_((r_t - self.target).sign() * num_images / self.ramp_images).clamp_(0, 1)

    def transform(self, x: Tensor) -> Tensor:
        # half precision would misplace pixels by a tenth of a pixel
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return self.apply_color(self.apply_geometry(x))

    # Appendix B: one affine map for each image, the product of the maps that were drawn for it.
    def apply_geometry(self, x: Tensor) -> Tensor:
        """Return flipped, rotated, scaled and translated images, mirrored at their borders."""
        b, sides = len(x), x.new_tensor([x.shape[3], x.shape[2]])
        one, zero, no_shift = x.new_ones(b), x.new_zeros(b), x.new_zeros(b, 2)
        p_rotation = 1 - (1 - self.running_p).sqrt()  # of each rotation: 1 − (1 − p_rotation)² = p

        def draw_mirror() -> Tensor:
            return 1 - 2 * torch.randint_like(one, 2)

        def draw_quarter_turns() -> Tensor:
            return torch.randint_like(one, 4) * (math.pi / 2)

        def draw_pixel_shift() -> Tensor:
            return (draw_uniform(x, b, 2, low=-1 / 8, high=1 / 8) * sides).round()

        def draw_angle() -> Tensor:
            return draw_uniform(x, b, low=-math.pi, high=math.pi)

        def draw_scale_factor() -> Tensor:
            return torch.exp2(0.2 * torch.randn_like(one))

        def draw_shift() -> Tensor:
            return torch.randn_like(no_shift) / 8 * sides

        maps = [
            scale_matrix(self.draw_or_default(draw_mirror, one), one),
            rotation_matrix(self.draw_or_default(draw_quarter_turns, zero)),
            translation_matrix(self.draw_or_default(draw_pixel_shift, no_shift)),
            scale_matrix(s := self.draw_or_default(draw_scale_factor, one), s),
            rotation_matrix(self.draw_or_default(draw_angle, zero, p_rotation)),
            scale_matrix(s := self.draw_or_default(draw_scale_factor, one), 1 / s),
            rotation_matrix(self.draw_or_default(draw_angle, zero, p_rotation)),
            translation_matrix(self.draw_or_default(draw_shift, no_shift)),
        ]
        return affine_warp(x, reduce(torch.matmul, maps))

    def apply_color(self, x: Tensor) -> Tensor:
        """Return images of random brightness, contrast, luma, and for RGB hue and saturation."""
        one = x.new_ones(len(x))
        zero = 0 * one

        def draw_each(draw: Callable[[], Tensor], default: Tensor) -> Tensor:
            return expand_like(self.draw_or_default(draw, default), x)

        x = x + draw_each(lambda: 0.2 * torch.randn_like(one), zero)  # brightness
        x = x * draw_each(lambda: torch.exp2(0.5 * torch.randn_like(one)), one)  # contrast
        x = flip_luma(x, draw_each(lambda: torch.randint_like(one, 2), zero))
        if x.shape[1] == 3:
            angle = draw_each(lambda: draw_uniform(x, len(x), low=-math.pi, high=math.pi), zero)
            x = rotate_hue(x, angle)
            x = scale_saturation(x, draw_each(lambda: torch.exp2(torch.randn_like(one)), one))
        return x

    def draw_or_default(
        self, draw: Callable[[], Tensor], default: Tensor, p: Tensor | None = None
    ) -> Tensor:
        """Return `draw()` (B, …) for each image with probability p, otherwise `default` (B, …).

        Args:
            p: None for the current probability of augmentation.
        """
        coins = expand_like(torch.rand(len(default), device=default.device), default)
        return torch.where(coins < (self.running_p if p is None else p), draw(), default)


# Affine maps of the plane (B, 3, 3), of points (x, y, 1) in pixels from the image's center. The
# inverse of each map has the same distribution as the map.
def scale_matrix(sx: Tensor, sy: Tensor) -> Tensor:
    """Return the maps that scale by sx and sy (B,)."""
    return torch.diag_embed(torch.stack([sx, sy, torch.ones_like(sx)], 1))


def rotation_matrix(angle: Tensor) -> Tensor:
    """Return the maps that rotate by an angle (B,)."""
    sine, zero = angle.sin(), torch.zeros_like(angle)
    rows = [angle.cos(), -sine, zero], [sine, angle.cos(), zero], [zero, zero, zero + 1]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def translation_matrix(shift: Tensor) -> Tensor:
    """Return the maps that translate by shift (B, 2)."""
    eye = torch.eye(3, 2, dtype=shift.dtype, device=shift.device).expand(len(shift), 3, 2)
    return torch.cat([eye, F.pad(shift, (0, 1), value=1)[:, :, None]], 2)


def affine_warp(x: Tensor, maps: Tensor) -> Tensor:
    """Return images (B, C, H, W) sampled where the maps (B, 3, 3) take each output pixel.

    Images are mirrored at their borders.
    """
    half = x.new_tensor([x.shape[3] / 2, x.shape[2] / 2, 1])
    grid = F.affine_grid((maps * half / half[:, None])[:, :2], list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


# Colors (B, C, H, W) about the luma axis v = (1, 1, 1)/√3: the luma vvᵀx is the mean of the
# channels, the rest is chroma.
def luma(x: Tensor) -> Tensor:
    """Return the luma (B, 1, H, W) of images (B, C, H, W)."""
    return x.mean(1, keepdim=True)


def flip_luma(x: Tensor, flip: Tensor) -> Tensor:
    """Return (I − 2vvᵀ) x where `flip` is 1, x where it is 0."""
    return x - 2 * flip * luma(x)


def rotate_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate three channels about v: vvᵀx + cos θ (x − vvᵀx) + sin θ v × x (Rodrigues)."""
    cross = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)  # v × x
    return luma(x) + angle.cos() * (x - luma(x)) + angle.sin() * cross


def scale_saturation(x: Tensor, s: Tensor) -> Tensor:
    """Return vvᵀx + s (x − vvᵀx)."""
    return luma(x) + s * (x - luma(x))


def draw_uniform(x: Tensor, *shape: int, low: float, high: float) -> Tensor:
    """Draw uniform numbers of a shape, with the device and type of x."""
    return x.new_empty(shape).uniform_(low, high)


def draw_integer_per_image(x: Tensor, low: int, high: int) -> Tensor:
    """Draw an integer low ≤ n ≤ high for each image of x: (B,)."""
    return torch.randint(low, high + 1, (len(x),), device=x.device)


def cutout_mask_1d(x: Tensor, side: int) -> Tensor:
    """Return a mask (B, side) of the pixels of a side inside a random interval half as long.

    The interval's center is anywhere on the side, up to its ends.
    """
    length = (side + 1) // 2
    # the center of an interval of even length is between two pixels
    start = draw_integer_per_image(x, 0, side - length % 2)[:, None] - length // 2
    pixels = torch.arange(side, device=x.device)
    return (pixels >= start) & (pixels < start + length)


def translate_pixels(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Translate images (B, C, H, W) by whole pixels (B,) each, filling with 0."""
    b, c, height, width = x.shape
    rows = torch.arange(height, device=x.device) - down[:, None]  # (B, H): source of each row
    columns = torch.arange(width, device=x.device) - right[:, None]
    has_row = ((rows >= 0) & (rows < height))[:, :, None]
    has_column = ((columns >= 0) & (columns < width))[:, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    x = x.gather(2, rows[:, None, :, None].expand(b, c, height, width))
    x = x.gather(3, columns[:, None, None].expand(b, c, height, width))
    return x * (has_row & has_column)[:, None]


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "none": NoAugmentation,
    "diffaugment": DiffAugment,
    "ada": AdaptiveAugmentation,
}
