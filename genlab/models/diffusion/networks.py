"""The denoising networks: functions of the data's shape and of what is asked of them, each chosen by `backbone=`.

A network is called as network(x_t (B, C, …), t (B,) or (1,), y (B,) or None) and gives (B, outputs, …).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.nn.dit import DiT
from genlab.nn.embeddings import TimeEmbedding, waves
from genlab.nn.unet import UNet, sides
from genlab.spec import Decay, Positive, Spec

Shape = tuple[int, ...]


def unet(
    shape: Shape,
    *,
    channels: Positive = 128,
    multipliers: tuple[Positive, ...] = (1, 2, 2, 2),
    blocks: Positive = 2,
    attention: tuple[Positive, ...] = (16,),
    heads: Positive = 1,
    dropout: Decay = 0.1,
    outputs: int | None = None,
    classes: int = 0,
    context: int = 0,
) -> UNet:
    """Return the U-Net of images (Ho et al. 2020, appendix B); see `genlab.nn.unet.UNet`.

    Args:
        channels: width of the first level; level i has channels · multipliers[i].
        blocks: residual blocks of a level on the way down; the way up has one more.
        attention: for each number, the largest feature maps whose side is at most that are given self-attention: a recipe's
            [16] is that of 16×16, and of smaller images that of the first level. The middle of the net always has it.
        heads: of each self-attention.
        dropout: share of a block's features that a training pass leaves out.

    Raises:
        UserError: no feature map is as small as one of `attention` asks for.
    """
    there = sides(shape, len(multipliers))  # descending
    for side in attention:
        if side < there[-1]:
            raise UserError(f"model.backbone.attention={list(attention)}: no feature map has a side of at most {side}; of "
                            f"{shape[1]}×{shape[2]} with {len(there)} model.backbone.multipliers they have the sides "
                            f"{', '.join(map(str, there))}")  # fmt: skip
    found = tuple(max(s for s in there if s <= side) for side in attention)
    how = {
        "multipliers": multipliers,
        "blocks": blocks,
        "attention": found,
        "heads": heads,
        "dropout": dropout,
    }
    return UNet(shape, channels=channels, **how, outputs=outputs, classes=classes, context=context)


def dit(
    shape: Shape,
    *,
    patch: Positive = 2,
    width: Positive = 384,
    layers: Positive = 12,
    heads: Positive = 6,
    outputs: int | None = None,
    classes: int = 0,
) -> DiT:
    """Return the transformer of images (Peebles & Xie 2023, 2212.09748): DiT-S/2 by default; see `genlab.nn.dit.DiT`.

    Args:
        patch: side of a patch, in pixels; each is a token.
        width: dimension of a token; layers: blocks; heads: of each self-attention.

    Raises:
        UserError: the sides are no multiple of the patch, or the width none of the heads.
    """
    if any(side % patch for side in shape[1:]):
        raise UserError(
            f"patches of {patch}×{patch} do not fill images of {shape[1]}×{shape[2]}; change model.backbone.patch"
        )
    if width % (4 * heads):
        raise UserError(f"model.backbone.width={width} must be a multiple of 4·heads={4 * heads}")
    return DiT(
        shape,
        patch=patch,
        width=width,
        layers=layers,
        heads=heads,
        outputs=outputs,
        classes=classes,
    )


def mlp(
    shape: Shape,
    *,
    hidden: tuple[Positive, ...] = (256, 256, 256),
    frequencies: Annotated[int, Interval(ge=0, le=16)] = 5,
    outputs: int | None = None,
    classes: int = 0,
) -> PointDenoiser:
    """Return an MLP of points that is told the time in every layer.

    Args:
        hidden: widths of the layers.
        frequencies: of the sines and cosines that tell where a point lies; 0: its coordinates alone. See `genlab.nn.embeddings.waves`.
    """
    return PointDenoiser(
        shape[0], hidden, frequencies=frequencies, outputs=outputs or shape[0], classes=classes
    )


KINDS: dict[Any, str] = {unet: "image", dit: "image", mlp: "points"}  # what our own are for


def denoising_network(
    spec: Spec, backbone: Callable[..., Any] | None, *, outputs: int, classes: int
) -> nn.Module:
    """Return the network of the data: the one asked for, else a U-Net or an MLP by its kind.

    Raises:
        UserError: it is for images, and the data is points, or the other way round.
    """
    backbone = backbone or (mlp if spec.kind == "points" else unet)
    maker = backbone
    while isinstance(maker, partial):
        maker = maker.func
    if KINDS.get(maker, spec.kind) != spec.kind:
        fit = ", ".join(f.__name__ for f, kind in KINDS.items() if kind == spec.kind)
        raise UserError(
            f"backbone={maker.__name__} is for {KINDS[maker]}, and the data is {spec.kind}; choose backbone={fit}"
        )
    return backbone(spec.shape, outputs=outputs, classes=classes)


def of_codes(
    shape: Shape,
    *,
    maps: Callable[..., Any],
    vectors: Callable[..., Any],
    outputs: int | None = None,
    classes: int = 0,
) -> nn.Module:
    """Return the network of an autoencoder's codes: `maps` of codes (C, H, W), `vectors` of codes (D,).

    Raises:
        UserError: it is for the other kind.
    """
    spec, network = (
        (Spec(shape), maps) if len(shape) == 3 else (Spec(shape, kind="points"), vectors)
    )
    return denoising_network(spec, network, outputs=outputs or shape[0], classes=classes)


TIME = 128  # numbers of a point denoiser's embedded time


class PointDenoiser(nn.Module):
    """An MLP told the time in every layer: points (B, D), times t (B,) or (1,), classes y (B,) -> (B, outputs), outputs ≥ D.

    Sines and cosines of the point let few layers draw what is as sharp as the edge between two modes at little noise. The time
    scales and shifts what each layer finds (Perez et al. 2018, FiLM, 1709.07871), and says how much of the point itself
    goes to the output, which is nearly all of it where x_0 is asked for and little noise is on the point.
    """

    def __init__(
        self, dim: int, hidden: tuple[int, ...], *, frequencies: int, outputs: int, classes: int = 0
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.embed = TimeEmbedding(TIME, TIME, classes=classes)
        sizes = [dim * (1 + 2 * frequencies), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.times = nn.ModuleList(nn.Linear(TIME, 2 * b) for b in hidden)
        self.last = nn.Linear(sizes[-1], outputs)
        self.skip = nn.Linear(TIME, dim)
        nn.init.zeros_(self.skip.weight), nn.init.zeros_(self.skip.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        e = F.silu(self.embed(t, y))
        h = waves(x, self.frequencies)
        for layer, time in zip(self.layers, self.times, strict=True):
            scale, shift = time(e).chunk(2, -1)
            found = F.silu(layer(h) * (1 + scale) + shift)
            h = h + found if h.shape == found.shape else found
        skip = self.skip(e) * x
        out = self.last(h)
        return out + F.pad(
            skip, (0, out.shape[-1] - skip.shape[-1])
        )  # beside them may be the logarithms of variances
