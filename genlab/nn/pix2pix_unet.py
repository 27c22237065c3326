"""The generator of pix2pix: Isola et al. 2017, https://arxiv.org/abs/1611.07004, section 3.2.1 and appendix 6.1.1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.padding import padded


class Noise(nn.Module):
    """Dropout that stays on when the network is asked: it is the generator's noise."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.share, training=True)


class SkipUNet(nn.Module):
    """Images (B, inputs, H, W) to (B, outputs, H, W): halved `levels` times and doubled again, each level joined to its mirror.

    Sides that 2^levels does not divide are padded and cropped back. Normalisation is each image's own, which is the
    paper's batch normalisation with its batches of one.

    Args:
        width: maps of the first level; they double with each level up to eight times as many.
        dropout: share of the units that the three deepest levels on the way up leave out.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 64, levels: int = 8, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.multiple = 2**levels
        maps = [min(width << i, 8 * width) for i in range(levels)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, o in enumerate(maps):
            normed = (
                0 < i < levels - 1
            )  # the deepest level may be a single pixel, which its own mean would wipe out
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if i else []
            layers.append(
                nn.Conv2d(maps[i - 1] if i else inputs, o, 4, stride=2, padding=1, bias=not normed)
            )
            self.down.append(
                nn.Sequential(*layers, *([nn.InstanceNorm2d(o, affine=True)] if normed else []))
            )
        for i in reversed(range(levels)):
            joined = maps[i] * (1 if i == levels - 1 else 2)
            out = maps[i - 1] if i else outputs
            layers = [
                nn.ReLU(),
                nn.ConvTranspose2d(joined, out, 4, stride=2, padding=1, bias=not i),
            ]
            layers += [nn.InstanceNorm2d(out, affine=True)] if i else []
            layers += [Noise(dropout)] if dropout and i and len(self.up) < 3 else []
            self.up.append(nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return padded(self.joined, x, self.multiple)

    def joined(self, x: Tensor) -> Tensor:
        """Return the output of an image whose sides 2^levels divides."""
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for up in self.up[1:]:
            x = up(torch.cat([x, skips.pop()], 1))
        return x
