"""Gated PixelCNN: van den Oord et al. 2016, 1606.05328.

Conditional Image Generation with PixelCNN Decoders.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.autoregressive.base import AutoregressiveImageModel
from genlab.models.autoregressive.likelihoods import make_likelihood
from genlab.spec import Count, DataSpec, Positive

GATE_STD = 0.34  # standard deviation of tanh(a) σ(b) for a, b ~ N(0, 1)
CATEGORICAL_HEAD_CHANNELS = 1024  # features before a softmax over 256 levels, as in the paper


class PixelCNN(AutoregressiveImageModel):
    """A gated PixelCNN with a vertical stack (rows above) and a horizontal stack (row so far).

    See figure 2 of the paper.

    Args:
        likelihood: "bernoulli" for binary data, "categorical" for a softmax over any number of
            levels.
        channels: features of each stack. For images with C channels the features come in C groups,
            one per channel.
        num_layers: gated layers after the first one.
        kernel_size, first_kernel_size: sides of the convolutions, odd. Half of each kernel is
            masked and not computed.
        head_channels: features of the two 1×1 convolutions before the output.
        conditional: learn p(x | y) with a class bias in each gate (equation 4).

    Raises:
        UserError: the data is continuous, a kernel size is even, or the features cannot be
            divided into groups.
    """

    @classmethod
    def gray_level_options(cls, spec: DataSpec, options: dict[str, Any]) -> dict[str, Any]:
        groups = spec.shape[0]
        return {
            "model.likelihood": "categorical",
            "preprocess.binarize": "none",
            "model.channels": options.get("channels", 128) // groups * groups,
            "model.head_channels": CATEGORICAL_HEAD_CHANNELS // groups * groups,
        }

    def __init__(
        self,
        spec: DataSpec,
        *,
        likelihood: Literal["bernoulli", "categorical"] = "bernoulli",
        channels: Positive = 128,
        num_layers: Count = 14,
        kernel_size: Annotated[int, Ge(3)] = 3,
        first_kernel_size: Annotated[int, Ge(3)] = 7,
        head_channels: Positive = 256,
        conditional: bool = False,
    ) -> None:
        super().__init__(spec, make_likelihood(likelihood, spec), conditional=conditional)
        if kernel_size % 2 == 0 or first_kernel_size % 2 == 0:
            raise UserError(
                f"kernel sizes must be odd: set model.kernel_size={kernel_size | 1} "
                f"model.first_kernel_size={first_kernel_size | 1}"
            )
        groups = spec.shape[0]
        if channels % groups or head_channels % groups:
            raise UserError(
                f"an image with {groups} channels needs multiples of {groups}: set "
                f"model.channels={max(1, channels // groups) * groups} "
                f"model.head_channels={max(1, head_channels // groups) * groups}"
            )
        num_classes = spec.num_classes if conditional else 0
        self.first = GatedLayer(
            groups,
            channels,
            first_kernel_size,
            groups=groups,
            num_classes=num_classes,
            is_first=True,
        )
        self.layers = nn.ModuleList(
            GatedLayer(
                channels,
                channels,
                kernel_size,
                groups=groups,
                num_classes=num_classes,
                is_last=i == num_layers - 1,
            )
            for i in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            GroupedCausalConv(channels, head_channels, 1, groups=groups),
            nn.ReLU(),
            GroupedCausalConv(head_channels, groups * self.likelihood.num_params, 1, groups=groups),
        )

    def likelihood_params(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the likelihood's parameters (B, P, C, H, W) of x (B, C, H, W)."""
        u = self.scale_inputs(x)
        # The vertical stack of a row starts with the rows above it, so the input is shifted down by
        # one row.
        v, h = self.first(F.pad(u, (0, 0, 1, 0))[:, :, :-1], u, y)
        for layer in self.layers:
            v, h = layer(v, h, y)
        params: Tensor = self.head(h)
        return params.unflatten(1, (self.spec.shape[0], -1)).transpose(1, 2)


class GatedLayer(nn.Module):
    """A gated layer (figure 2) of two stacks: the rows above (v) and the row so far (h).

    The h of the first layer must not depend on the pixel itself, and is not residual. The v of the
    last layer is only used for h.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        kernel_size: int,
        *,
        groups: int,
        num_classes: int = 0,
        is_first: bool = False,
        is_last: bool = False,
    ) -> None:
        super().__init__()
        half = kernel_size // 2
        self.is_first, self.is_last = is_first, is_last
        self.vertical = nn.Conv2d(inputs, 2 * channels, (half + 1, kernel_size), padding=half)
        self.horizontal = GroupedCausalConv(
            inputs, 2 * channels, half + 1, groups=groups, num_parts=2, exclude_own_group=is_first
        )
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = GroupedCausalConv(channels, channels, 1, groups=groups)
        self.classes: nn.Module | None = None
        if num_classes:
            self.classes = nn.Embedding(num_classes, 2 * channels)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        """Draw weights for which the two inputs of a gate have unit variance.

        With PyTorch's default, each gate would reduce the standard deviation by two thirds.
        """
        half = 0.5**0.5  # the input of the horizontal gate is a sum of two terms
        scales: dict[nn.Conv2d, float] = {
            self.vertical: 1.0 if self.is_first else 1 / GATE_STD,
            self.horizontal: half,
            self.across: half,
            self.out: 1.0,
        }
        with torch.no_grad():
            for conv, scale in scales.items():
                if isinstance(conv, GroupedCausalConv):
                    mask = conv.mask
                else:
                    mask = torch.ones_like(conv.weight)
                # the first channel depends on no others
                fan_in = mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
                conv.weight.normal_().mul_(scale / fan_in.sqrt())
                assert conv.bias is not None
                conv.bias.zero_()

    def forward(self, v: Tensor, h: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        # (B, 2F, H, W): a row and the half kernel above it
        above = self.vertical(v)[:, :, : v.shape[2]]
        if self.classes is not None:
            # equation 4; `across` carries it into the other gate
            above = above + self.classes(y)[:, :, None, None]
        out = self.out(gated_activation(self.horizontal(h) + self.across(above)))
        return v if self.is_last else gated_activation(above), out if self.is_first else h + out


class GroupedCausalConv(nn.Conv2d):
    """A causal 1×k convolution of a pixel and the k − 1 pixels to its left.

    Features come in one group per channel. At the pixel itself a group depends on earlier groups
    and on itself: red, green, blue.

    Args:
        num_parts: number of equal parts of the outputs, each with all groups, as a gate needs them.
        exclude_own_group: at the pixel itself a group depends only on earlier groups.
    """

    mask: Tensor  # (out, in, 1, k)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        k: int,
        *,
        groups: int,
        num_parts: int = 1,
        exclude_own_group: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, (1, k), padding=(0, k - 1))
        mask = torch.ones_like(self.weight)
        part = outputs // num_parts
        out_group = (torch.arange(part) * groups // part).repeat(num_parts)[:, None]
        in_group = torch.arange(inputs) * groups // inputs
        allowed = out_group > in_group if exclude_own_group else out_group >= in_group
        mask[..., 0, -1] = allowed.to(mask)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.conv2d(x, weight, self.bias, padding=self.padding)[..., : x.shape[3]]


def gated_activation(x: Tensor) -> Tensor:
    """Return tanh(a) ⊙ σ(b) (B, F, H, W) of the halves a, b of x (B, 2F, H, W) (equation 2)."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()
