"""Padding of images for networks that need sides divisible by a number."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def apply_padded(net: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Return net(x) for images x (B, C, H, W) of any size.

    The image is padded by its edge values to multiples of `multiple`, and the result is cropped.
    """
    h, w = x.shape[-2:]
    if h % multiple or w % multiple:
        x = F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")
    return net(x)[..., :h, :w]
