"""The generator of pix2pix: Isola et al. 2017, https://arxiv.org/abs/1611.07004.

Section 3.2.1 and appendix 6.1.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.padding import apply_padded


class AlwaysOnDropout(nn.Module):
    """Dropout that stays on in eval mode, as the generator's noise."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


class Pix2PixUNet(nn.Module):
    """Images (B, inputs, H, W) to (B, outputs, H, W): halved to the bottom and doubled again.

    Each level on the way up receives the maps of its mirror level too. Images whose sides are not
    divisible by 2^num_levels are padded and cropped back. The normalization is that of instances,
    which equals the paper's batch normalization with its batches of one.

    Args:
        width: maps of the first level; they double with each level, up to eight times the width.
        dropout: fraction of the units dropped in the three deepest levels on the way up.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int = 64,
        num_levels: int = 8,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.size_multiple = 2**num_levels
        channels = [min(width << i, 8 * width) for i in range(num_levels)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        deepest = num_levels - 1
        for i, o in enumerate(channels):
            # the deepest level may be a single pixel, which its own mean would erase
            has_norm = 0 < i < deepest
            in_ = channels[i - 1] if i else inputs
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if i else []
            layers.append(nn.Conv2d(in_, o, 4, stride=2, padding=1, bias=not has_norm))
            if has_norm:
                layers.append(nn.InstanceNorm2d(o, affine=True))
            self.down.append(nn.Sequential(*layers))
        for i in reversed(range(num_levels)):
            in_ = channels[i] if i == deepest else 2 * channels[i]
            out = channels[i - 1] if i else outputs
            conv = nn.ConvTranspose2d(in_, out, 4, stride=2, padding=1, bias=not i)
            layers = [nn.ReLU(), conv]
            if i:
                layers.append(nn.InstanceNorm2d(out, affine=True))
            if dropout and i and len(self.up) < 3:
                layers.append(AlwaysOnDropout(dropout))
            self.up.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return apply_padded(self.forward_unpadded, x, self.size_multiple)

    def forward_unpadded(self, x: Tensor) -> Tensor:
        """Return the output for an image whose sides are divisible by 2^num_levels."""
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for up in self.up[1:]:
            x = up(torch.cat([x, skips.pop()], 1))
        return x
