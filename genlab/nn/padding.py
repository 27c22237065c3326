"""Images of any size for networks that halve them."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def padded(net: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Return net(x), of which height and width are multiples of `multiple`: x is padded by its edge, the result cropped."""
    h, w = x.shape[-2:]
    if h % multiple or w % multiple:
        x = F.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")
    return net(x)[..., :h, :w]
