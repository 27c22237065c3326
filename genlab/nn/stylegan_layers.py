"""Bricks of progressive and style-based generators: equalised layers, pixel norm, modulated convolution, filtered resampling.

Karras et al. 2018, https://arxiv.org/abs/1710.10196 (ProGAN); 2020, https://arxiv.org/abs/1912.04958 (StyleGAN2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.conv import conv_of_doubled


# ProGAN, section 4.1: the weights are drawn from N(0, 1) and scaled by He's constant c = gain/√fan_in when they are used, so
# that Adam, whose steps know no scale, teaches every layer at the same speed.
class EqualLinear(nn.Module):
    """y = (c·rate·W) x + rate·b, (B, in) to (B, out), with W ~ N(0, 1/rate²): `rate` multiplies the learning rate."""

    def __init__(
        self, in_: int, out: int, *, gain: float = 1.0, rate: float = 1.0, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, in_) / rate)
        self.bias = nn.Parameter(torch.full((out,), bias / rate))
        self.scale, self.rate = gain * rate / math.sqrt(in_), rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class EqualConv2d(nn.Module):
    """A convolution (B, in, H, W) to (B, out, H', W') with weights N(0, 1) times c.

    Args:
        up: double the height and width first; `kernel` is 3 then, and `padding` 1.
    """

    def __init__(
        self, in_: int, out: int, kernel: int, *, gain: float = 1.0, stride: int = 1, padding: int = 0, bias: bool = True,
        up: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, in_, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.scale = gain / math.sqrt(in_ * kernel**2)
        self.stride, self.padding, self.up = stride, padding, up

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.up:
            return conv_of_doubled(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PixelNorm(nn.Module):
    """b = a / √(mean of a² over the channels + ε), at each place of (B, C, …): ProGAN, section 4.2."""

    def forward(self, a: Tensor) -> Tensor:
        return a * (a.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class ModulatedConv2d(nn.Module):
    """A convolution whose weights a style scales for each item, (B, in, H, W) and w (B, style) to (B, out, H, W).

    Args:
        up: double the height and width.
        demodulate: bring each output map's expected deviation back to 1 (times `gain`).
    """

    def __init__(
        self,
        in_: int,
        out: int,
        kernel: int,
        style: int,
        *,
        up: bool = False,
        demodulate: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.affine = EqualLinear(style, in_, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out, in_, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out, 1, 1))
        self.scale = 1 / math.sqrt(in_ * kernel**2)
        self.up, self.demodulate, self.gain = up, demodulate, gain

    # StyleGAN2, eq. 1 and 3: w' = s_i w_ijk, w'' = w' / √(Σ_ik w'² + ε). A convolution is linear: scaling its input's maps by s
    # and its output's by 1/√Σ is the same, and needs no weights of each item's own (a grouped convolution).
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s, weight = self.affine(w), self.weight * self.scale  # (B, in), (out, in, k, k)
        x = x * s[:, :, None, None]
        if self.up:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return x * self.gain + self.bias
        norm = s.square() @ weight.square().sum((2, 3)).T + 1e-8  # (B, out)
        return torch.addcmul(self.bias, x, self.gain * norm.rsqrt()[:, :, None, None])


# Karras et al. 2019, https://arxiv.org/abs/1812.04948, appendix C, and StyleGAN2: resampling with the filter [1, 3, 3, 1], which
# leaves no checkerboard.
def taps(x: Tensor, gain: float) -> Tensor:
    """Return [1, 3, 3, 1] ⊗ [1, 3, 3, 1], of sum `gain`, for each channel of x (B, C, H, W): (C, 1, 4, 4)."""
    k = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device)
    return (k[:, None] * k * (gain / 64)).expand(x.shape[1], 1, 4, 4)


def blur(x: Tensor, *, padding: int, gain: float = 1.0) -> Tensor:
    """Return x (B, C, H, W) filtered, (B, C, H + 2·padding − 3, W + 2·padding − 3)."""
    return F.conv2d(x, taps(x, gain), padding=padding, groups=x.shape[1])


def upsampled(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) as (B, C, 2H, 2W): zeros between the values, then the filter with gain 4."""
    return F.conv_transpose2d(x, taps(x, 4.0), stride=2, padding=1, groups=x.shape[1])


def downsampled(x: Tensor) -> Tensor:
    """Return x (B, C, H, W) as (B, C, H/2, W/2): the filter, then every second value."""
    return F.conv2d(x, taps(x, 1.0), stride=2, padding=1, groups=x.shape[1])
