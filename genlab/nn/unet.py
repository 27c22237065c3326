"""The U-Net of DDPM (Ho et al. 2020, appendix B), after PixelCNN++ and Wide ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.nn.attention import CrossAttention2d, SelfAttention2d, make_group_norm
from genlab.nn.conv import UpConv2d
from genlab.nn.embeddings import TimeEmbedding

Context = tuple[Tensor, Tensor]  # vectors (B, L, D), and which of them are not padding (B, L)


def feature_map_sides(shape: Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Return the larger side of each level's (padded) maps in a `UNet` for images (C, H, W)."""
    factor = 2 ** (num_levels - 1)
    side = -(-max(shape[1:]) // factor) * factor
    return tuple(side >> i for i in range(num_levels))


class ResBlock(nn.Module):
    """Two normalized 3×3 convolutions, with the time embedding between them, and a skip.

    Args:
        scale_shift_norm: the embedding scales and shifts the second norm (Nichol & Dhariwal 2021,
            https://arxiv.org/abs/2102.09672, section 3) instead of being added before it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embed_dim: int,
        dropout: float,
        *,
        scale_shift_norm: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.norm1, self.norm2 = make_group_norm(inputs), make_group_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.embed = nn.Linear(embed_dim, 2 * outputs if scale_shift_norm else outputs)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        embedding = self.embed(e)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = embedding.chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + embedding)
        h = self.conv2(self.dropout(F.silu(h)))
        return self.skip(x) + h


class Stage(nn.Module):
    """A residual block, then self-attention and cross-attention if there are heads.

    Args:
        num_heads: 0 for no attention.
        context_dim: 0 for no context.
        scale_shift_norm: see `ResBlock`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embed_dim: int,
        dropout: float,
        num_heads: int,
        context_dim: int,
        *,
        scale_shift_norm: bool = False,
    ) -> None:
        super().__init__()
        self.block = ResBlock(
            inputs, outputs, embed_dim, dropout, scale_shift_norm=scale_shift_norm
        )
        self.attention: nn.Module = nn.Identity()
        self.reading: nn.Module | None = None
        if num_heads:
            self.attention = SelfAttention2d(outputs, num_heads=num_heads)
        if num_heads and context_dim:
            self.reading = CrossAttention2d(outputs, context_dim, num_heads=num_heads)

    def forward(self, x: Tensor, e: Tensor, context: Context | None) -> Tensor:
        x = self.attention(self.block(x, e))
        if self.reading is None:
            return x
        assert context is not None
        return self.reading(x, *context)


class UNet(nn.Module):
    """A network from images, times and optional classes to maps (B, outputs, H, W).

    Images are (B, C, H, W), times t (B,) or (1,), classes y (B,). Sides need not be multiples of
    2^(levels − 1): the image is padded with zeros at the right and at the bottom, and the result is
    cropped.

    Args:
        shape: (C, H, W) of an image.
        channels: width of the first level; level i has channels · channel_mult[i].
        num_blocks: residual blocks of a level on the way down; the way up has one more.
        attention_sides: sides of the (padded) feature maps with self-attention; the middle of the
            network always has it.
        num_heads: heads of each self-attention.
        scale_shift_norm: see `ResBlock`.
        outputs: channels of the result; None for C.
        context_dim: dimension of the vectors of a context, such as a text; 0 for no context.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_sides: tuple[int, ...] = (16,),
        num_heads: int = 1,
        dropout: float = 0.1,
        scale_shift_norm: bool = False,
        outputs: int | None = None,
        num_classes: int = 0,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        inputs = shape[0]
        self.factor = 2 ** (len(channel_mult) - 1)
        widths = [channels * m for m in channel_mult]
        # the paper's 4 · channels, but a narrow network must distinguish its times too
        embed_dim = max(4 * channels, 64)
        sides = feature_map_sides(shape, len(widths))
        heads = [num_heads if side in attention_sides else 0 for side in sides]
        self.embed = TimeEmbedding(max(channels, 32), embed_dim, num_classes=num_classes)
        # the mean of the context is added to the time embedding
        self.summary = nn.Linear(context_dim, embed_dim) if context_dim else None
        self.first = nn.Conv2d(inputs, channels, 3, padding=1)

        make_stage = partial(Stage, scale_shift_norm=scale_shift_norm)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, width = [channels], channels
        for i, w in enumerate(widths):
            stages = nn.ModuleList()
            for _ in range(num_blocks):
                stages.append(make_stage(width, w, embed_dim, dropout, heads[i], context_dim))
                skips.append(w)
                width = w
            self.down.append(stages)
            if i + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)

        self.middle = nn.ModuleList(
            [
                make_stage(width, width, embed_dim, dropout, num_heads, context_dim),
                make_stage(width, width, embed_dim, dropout, 0, 0),
            ]
        )

        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, w in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(num_blocks + 1):
                inputs_ = width + skips.pop()
                stages.append(make_stage(inputs_, w, embed_dim, dropout, heads[i], context_dim))
                width = w
            self.up.append(stages)
            if i:
                self.grow.append(UpConv2d(width, width))
        self.norm = make_group_norm(width)
        self.last = nn.Conv2d(width, outputs or inputs, 3, padding=1)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw the weights as in the authors' code; each branch ends in zeros, as an identity."""
        last_layers: set[nn.Module] = {self.last}
        for m in self.modules():
            if isinstance(m, ResBlock):
                last_layers.add(m.conv2)
            elif isinstance(m, SelfAttention2d | CrossAttention2d):
                last_layers.add(m.out)
        for m in self.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                if m in last_layers:
                    nn.init.zeros_(m.weight)
                else:
                    nn.init.xavier_uniform_(m.weight)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        *,
        context: Context | None = None,
    ) -> Tensor:
        """Return (B, outputs, H, W).

        Args:
            context: vectors (B, L, D), and which of them are not padding, bool (B, L).
        """
        height, width = x.shape[-2:]
        right, bottom = -width % self.factor, -height % self.factor
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        e = self.embed(t, y)
        if self.summary is not None:
            assert context is not None
            vectors, mask = context
            weight = mask.to(vectors) / mask.sum(1, keepdim=True)  # (B, L)
            e = e + self.summary((weight[:, :, None] * vectors).sum(1))
        e = F.silu(e)
        h = self.first(x)
        skips = [h]
        for i, stages in enumerate(self.down):
            assert isinstance(stages, nn.ModuleList)
            for stage in stages:
                h = stage(h, e, context)
                skips.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, e, context)
        for i, stages in enumerate(self.up):
            assert isinstance(stages, nn.ModuleList)
            for stage in stages:
                h = stage(torch.cat([h, skips.pop()], 1), e, context)
            if i < len(self.grow):
                h = self.grow[i](h)
        return self.last(F.silu(self.norm(h)))[..., :height, :width]
