"""Layers of ProGAN and StyleGAN2: equalized, modulated and resampling layers.

Karras et al. 2018, https://arxiv.org/abs/1710.10196 (ProGAN);
Karras et al. 2020, https://arxiv.org/abs/1912.04958 (StyleGAN2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.conv import upsample_then_conv2d


# ProGAN, section 4.1: the weights are drawn from N(0, 1) and scaled by He's constant
# c = gain/√fan_in when they are used. As Adam's steps do not depend on the scale of the gradients,
# every layer then learns at the same speed.
class EqualizedLinear(nn.Module):
    """y = (c·lr_mult·W) x + lr_mult·b, (B, in) to (B, out), with W ~ N(0, 1/lr_mult²).

    Args:
        lr_mult: multiplies the learning rate of the layer.
        bias: initial value.
    """

    def __init__(
        self, in_: int, out: int, *, gain: float = 1.0, lr_mult: float = 1.0, bias: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, in_) / lr_mult)
        self.bias = nn.Parameter(torch.full((out,), bias / lr_mult))
        self.scale, self.lr_mult = gain * lr_mult / math.sqrt(in_), lr_mult

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mult)


class EqualizedConv2d(nn.Module):
    """A convolution (B, in, H, W) to (B, out, H', W') with weights N(0, 1) times c.

    Args:
        upsample: double the height and width first; `kernel_size` must be 3, and `padding` 1.
    """

    def __init__(
        self,
        in_: int,
        out: int,
        kernel_size: int,
        *,
        gain: float = 1.0,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, in_, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.scale = gain / math.sqrt(in_ * kernel_size**2)
        self.stride, self.padding, self.upsample = stride, padding, upsample

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if self.upsample:
            return upsample_then_conv2d(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class PixelNorm(nn.Module):
    """b = a / √(mean of a² over the channels + ε), at each position of (B, C, …).

    ProGAN, section 4.2.
    """

    def forward(self, a: Tensor) -> Tensor:
        return a * (a.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class ModulatedConv2d(nn.Module):
    """A convolution whose weights are scaled by a style for each sample.

    Maps (B, in, H, W) and w (B, style_dim) to (B, out, H, W).

    Args:
        upsample: double the height and width.
        demodulate: restore each output map's expected standard deviation to 1 (times `gain`).
    """

    def __init__(
        self,
        in_: int,
        out: int,
        kernel_size: int,
        style_dim: int,
        *,
        upsample: bool = False,
        demodulate: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.affine = EqualizedLinear(style_dim, in_, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out, in_, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out, 1, 1))
        self.scale = 1 / math.sqrt(in_ * kernel_size**2)
        self.upsample, self.demodulate, self.gain = upsample, demodulate, gain

    # StyleGAN2, eqs. 1 and 3: w' = s_i w_ijk, w'' = w' / √(Σ_ik w'² + ε). A convolution is linear:
    # scaling its input maps by s and its output maps by 1/√Σ gives the same result without separate
    # weights for each sample (a grouped convolution).
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        s, weight = self.affine(w), self.weight * self.scale  # (B, in), (out, in, k, k)
        x = x * s[:, :, None, None]
        if self.upsample:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return x * self.gain + self.bias
        norm = s.square() @ weight.square().sum((2, 3)).T + 1e-8  # (B, out)
        return torch.addcmul(self.bias, x, self.gain * norm.rsqrt()[:, :, None, None])


# Karras et al. 2019, https://arxiv.org/abs/1812.04948, appendix C, and StyleGAN2: resampling with
# the filter [1, 3, 3, 1], which avoids checkerboard artifacts.
def resampling_filter(x: Tensor, gain: float) -> Tensor:
    """Return [1, 3, 3, 1] ⊗ [1, 3, 3, 1] for each channel of x (B, C, H, W): (C, 1, 4, 4).

    Args:
        gain: the sum of a filter's weights.
    """
    k = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device)
    return (k[:, None] * k * (gain / 64)).expand(x.shape[1], 1, 4, 4)


def blur(x: Tensor, *, padding: int, gain: float = 1.0) -> Tensor:
    """Return x (B, C, H, W) filtered: (B, C, H + 2·padding − 3, W + 2·padding − 3)."""
    return F.conv2d(x, resampling_filter(x, gain), padding=padding, groups=x.shape[1])


def upsample_filtered(x: Tensor) -> Tensor:
    """Upsample x (B, C, H, W) to (B, C, 2H, 2W): zeros between the values, then the filter."""
    weight = resampling_filter(x, 4.0)
    return F.conv_transpose2d(x, weight, stride=2, padding=1, groups=x.shape[1])


def downsample_filtered(x: Tensor) -> Tensor:
    """Downsample x (B, C, H, W) to (B, C, H/2, W/2): the filter, then every second value."""
    return F.conv2d(x, resampling_filter(x, 1.0), stride=2, padding=1, groups=x.shape[1])
