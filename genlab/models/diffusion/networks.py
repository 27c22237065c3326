"""Denoising networks: functions of the data's shape, each chosen by `backbone=`.

A network is called as network(x_t (B, C, …), t (B,) or (1,), y (B,) or None) and returns
(B, outputs, …).
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
from genlab.nn.embeddings import TimeEmbedding, fourier_features
from genlab.nn.unet import UNet, feature_map_sides
from genlab.spec import DataSpec, Decay, Positive

Shape = tuple[int, ...]
ImageShape = tuple[int, int, int]  # (C, H, W)

TIME_EMBEDDING_DIM = 128  # of a point denoiser


def unet(
    shape: ImageShape,
    *,
    channels: Positive = 128,
    channel_mult: tuple[Positive, ...] = (1, 2, 2, 2),
    num_blocks: Positive = 2,
    attention_resolutions: tuple[Positive, ...] = (16,),
    num_heads: Positive = 1,
    dropout: Decay = 0.1,
    scale_shift_norm: bool = False,
    outputs: int | None = None,
    num_classes: int = 0,
    context_dim: int = 0,
) -> UNet:
    """Return the U-Net for images (Ho et al. 2020, appendix B); see `genlab.nn.unet.UNet`.

    Args:
        channels: width of the first level; level i has channels · channel_mult[i].
        num_blocks: residual blocks of a level on the way down; the way up has one more.
        attention_resolutions: for each number, the largest feature maps whose side is at most that
            number get self-attention; if all maps are larger, the smallest get it. A recipe's [16]
            stands for 16×16 maps, and with smaller images for the first level. The middle of the
            network, which has the smallest maps, always has self-attention.
        num_heads: heads of each self-attention.
        dropout: share of a block's features that are dropped in training.
        scale_shift_norm: the time scales and shifts each block's second norm (Nichol & Dhariwal
            2021); otherwise it is added before that norm.
    """
    resolutions = feature_map_sides(shape, len(channel_mult))  # descending
    attention = tuple(
        max((side for side in resolutions if side <= resolution), default=resolutions[-1])
        for resolution in attention_resolutions
    )
    return UNet(
        shape,
        channels=channels,
        channel_mult=channel_mult,
        num_blocks=num_blocks,
        attention_sides=attention,
        num_heads=num_heads,
        dropout=dropout,
        scale_shift_norm=scale_shift_norm,
        outputs=outputs,
        num_classes=num_classes,
        context_dim=context_dim,
    )


def dit(
    shape: ImageShape,
    *,
    patch_size: Positive = 2,
    width: Positive = 384,
    num_layers: Positive = 12,
    num_heads: Positive = 6,
    outputs: int | None = None,
    num_classes: int = 0,
) -> DiT:
    """Return the diffusion transformer for images, DiT-S/2 by default.

    Peebles & Xie 2023, 2212.09748; see `genlab.nn.dit.DiT`.

    Args:
        patch_size: side of a patch in pixels; each patch is a token.
        width: dimension of a token.
        num_layers: number of blocks.
        num_heads: heads of each self-attention.

    Raises:
        UserError: the sides are not multiples of the patch size, or the width is not a multiple of
            4·num_heads.
    """
    if any(side % patch_size for side in shape[1:]):
        raise UserError(
            f"patches of {patch_size}×{patch_size} do not fill images of {shape[1]}×{shape[2]}; "
            "change model.backbone.patch_size"
        )
    if width % (4 * num_heads):
        raise UserError(
            f"model.backbone.width={width} must be a multiple of 4·num_heads={4 * num_heads}"
        )
    return DiT(
        shape,
        patch_size=patch_size,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        outputs=outputs,
        num_classes=num_classes,
    )


def mlp(
    shape: Shape,
    *,
    hidden: tuple[Positive, ...] = (256, 256, 256),
    num_frequencies: Annotated[int, Interval(ge=0, le=16)] = 5,
    outputs: int | None = None,
    num_classes: int = 0,
) -> PointDenoiser:
    """Return an MLP for points that receives the time in every layer.

    Args:
        hidden: widths of the layers.
        num_frequencies: number of frequencies of the sines and cosines of the coordinates; 0 uses
            only the coordinates. See `genlab.nn.embeddings.fourier_features`.
    """
    return PointDenoiser(
        shape[0],
        hidden,
        num_frequencies=num_frequencies,
        outputs=outputs or shape[0],
        num_classes=num_classes,
    )


# The kind of data that each of these networks is for.
NETWORK_KINDS: dict[Any, str] = {unet: "image", dit: "image", mlp: "points"}


def make_denoising_network(
    spec: DataSpec, backbone: Callable[..., Any] | None, *, outputs: int, num_classes: int
) -> nn.Module:
    """Return the network of a backbone; without one, a U-Net or an MLP by the kind of data.

    Raises:
        UserError: the backbone is for another kind of data.
    """
    default: Callable[..., Any] = mlp if spec.kind == "points" else unet
    backbone = backbone or default
    function: Any = backbone
    while isinstance(function, partial):
        function = function.func
    if NETWORK_KINDS.get(function, spec.kind) != spec.kind:
        fitting = [f.__name__ for f, kind in NETWORK_KINDS.items() if kind == spec.kind]
        raise UserError(
            f"backbone={function.__name__} is for {NETWORK_KINDS[function]}, but the data is "
            f"{spec.kind}; choose backbone={', '.join(fitting)}"
        )
    network: nn.Module = backbone(spec.shape, outputs=outputs, num_classes=num_classes)
    return network


def latent_backbone(
    shape: Shape,
    *,
    map_backbone: Callable[..., Any],
    vector_backbone: Callable[..., Any],
    outputs: int | None = None,
    num_classes: int = 0,
) -> nn.Module:
    """Return the network for the codes of an autoencoder.

    Args:
        map_backbone: the network for codes that are feature maps (C, H, W).
        vector_backbone: the network for codes that are vectors (D,).

    Raises:
        UserError: the network is for the other kind of code.
    """
    if len(shape) == 3:
        spec, backbone = DataSpec(shape), map_backbone
    else:
        spec, backbone = DataSpec(shape, kind="points"), vector_backbone
    return make_denoising_network(
        spec, backbone, outputs=outputs or shape[0], num_classes=num_classes
    )


class PointDenoiser(nn.Module):
    """An MLP that receives the time in every layer.

    Points (B, D), times t (B,) or (1,) and classes y (B,) -> (B, outputs), outputs ≥ D.

    With sines and cosines of the point, a few layers can represent functions as sharp as the border
    between two modes at low noise. The time scales and shifts the features of each layer (Perez et
    al. 2018, FiLM, 1709.07871). It also sets the weight with which the point itself is added to the
    output: a prediction of x_0 at low noise is almost the point itself.
    """

    def __init__(
        self,
        dim: int,
        hidden: tuple[int, ...],
        *,
        num_frequencies: int,
        outputs: int,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.embed = TimeEmbedding(TIME_EMBEDDING_DIM, TIME_EMBEDDING_DIM, num_classes=num_classes)
        sizes = [dim * (1 + 2 * num_frequencies), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.times = nn.ModuleList(nn.Linear(TIME_EMBEDDING_DIM, 2 * b) for b in hidden)
        self.last = nn.Linear(sizes[-1], outputs)
        self.skip = nn.Linear(TIME_EMBEDDING_DIM, dim)
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        e = F.silu(self.embed(t, y))
        h = fourier_features(x, self.num_frequencies)
        for layer, time in zip(self.layers, self.times, strict=True):
            scale, shift = time(e).chunk(2, -1)
            out = F.silu(layer(h) * (1 + scale) + shift)
            h = h + out if h.shape == out.shape else out
        skip = self.skip(e) * x
        out = self.last(h)
        # the outputs after the first D, such as the v of learned variances, get no skip connection
        return out + F.pad(skip, (0, out.shape[-1] - skip.shape[-1]))
