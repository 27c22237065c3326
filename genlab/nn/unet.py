"""The U-Net of DDPM (Ho et al. 2020, appendix B), after PixelCNN++ and Wide ResNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.attention import CrossAttention2d, SelfAttention2d, group_norm
from genlab.nn.conv import UpConv2d
from genlab.nn.embeddings import TimeEmbedding


def sides(shape: tuple[int, int, int], levels: int) -> tuple[int, ...]:
    """Return the larger side of each level's (padded) feature maps in a `UNet` of images of `shape` (C, H, W)."""
    factor = 2 ** (levels - 1)
    side = -(-max(shape[1:]) // factor) * factor
    return tuple(side >> i for i in range(levels))


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions with the time embedding added between them, and a skip."""

    def __init__(self, inputs: int, outputs: int, embed: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs)
        self.conv1, self.conv2 = (
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.Conv2d(outputs, outputs, 3, padding=1),
        )
        self.embed = nn.Linear(embed, outputs)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.embed(e)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class Stage(nn.Module):
    """A residual block, then, where the level has heads, attention to the other places and to the context, if there is one."""

    def __init__(
        self, inputs: int, outputs: int, embed: int, dropout: float, heads: int, context: int
    ) -> None:
        super().__init__()
        self.block = ResBlock(inputs, outputs, embed, dropout)
        self.attention = SelfAttention2d(outputs, heads=heads) if heads else nn.Identity()
        self.reading = (
            CrossAttention2d(outputs, context, heads=heads) if heads and context else None
        )

    def forward(self, x: Tensor, e: Tensor, context: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self.attention(self.block(x, e))
        return x if self.reading is None else self.reading(x, *context)


class UNet(nn.Module):
    """Maps images (B, C, H, W), times t (B,) or (1,), and perhaps classes y (B,) to maps (B, outputs, H, W).

    Sides need not be multiples of 2^(levels − 1): the image is padded with zeros right and below, and cropped back.

    Args:
        shape: (C, H, W) of an image.
        channels: width of the first level; level i has channels · multipliers[i].
        blocks: residual blocks of a level on the way down; the way up has one more.
        attention: sides of the (padded) feature maps that are given self-attention; the middle of the net always is.
        heads: of each self-attention.
        outputs: channels of the maps; None: C.
        context: dimension of the vectors of a context, of a text; 0: there is none.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        heads: int = 1,
        dropout: float = 0.1,
        outputs: int | None = None,
        classes: int = 0,
        context: int = 0,
    ) -> None:
        super().__init__()
        inputs = shape[0]
        self.factor = 2 ** (len(multipliers) - 1)
        widths = [channels * m for m in multipliers]
        embed = max(
            4 * channels, 64
        )  # the paper's 4 · channels, but a narrow net still tells its times apart
        attends = [heads * (side in attention) for side in sides(shape, len(widths))]
        self.embed = TimeEmbedding(max(channels, 32), embed, classes=classes)
        self.summary = (
            nn.Linear(context, embed) if context else None
        )  # what the whole context says goes with the time
        self.first = nn.Conv2d(inputs, channels, 3, padding=1)

        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, now = [channels], channels
        for i, w in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(Stage(now, w, embed, dropout, attends[i], context))
                skips.append(now := w)
            self.down.append(stages)
            if i + 1 < len(widths):
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)

        self.middle = nn.ModuleList(
            [Stage(now, now, embed, dropout, heads, context), Stage(now, now, embed, dropout, 0, 0)]
        )

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, w in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(Stage(now + skips.pop(), w, embed, dropout, attends[i], context))
                now = w
            self.up.append(stages)
            if i:
                self.grow.append(UpConv2d(now, now))
        self.norm = group_norm(now)
        self.last = nn.Conv2d(now, outputs or inputs, 3, padding=1)
        self.initialise()

    def initialise(self) -> None:
        """Draw weights as the authors' code does; what ends a branch starts at zero: blocks start as identities."""
        ends = {m.conv2 for m in self.modules() if isinstance(m, ResBlock)}
        ends |= {
            m.out for m in self.modules() if isinstance(m, SelfAttention2d | CrossAttention2d)
        } | {self.last}
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                nn.init.zeros_(m.weight) if m in ends else nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        context: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return (B, outputs, H, W).

        Args:
            context: vectors (B, L, D), and which of them say something, bool (B, L).
        """
        height, width = x.shape[-2:]
        right, below = -width % self.factor, -height % self.factor
        if right or below:
            x = F.pad(x, (0, right, 0, below))
        e = self.embed(t, y)
        if self.summary is not None:
            vectors, there = context
            share = there.to(vectors) / there.sum(1, keepdim=True)  # (B, L)
            e = e + self.summary((share[:, :, None] * vectors).sum(1))
        e = F.silu(e)
        h = self.first(x)
        skips = [h]
        for i, stages in enumerate(self.down):
            for stage in stages:
                skips.append(h := stage(h, e, context))
            if i < len(self.shrink):
                skips.append(h := self.shrink[i](h))
        for stage in self.middle:
            h = stage(h, e, context)
        for i, stages in enumerate(self.up):
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], 1), e, context)
            if i < len(self.grow):
                h = self.grow[i](h)
        return self.last(F.silu(self.norm(h)))[..., :height, :width]
