"""Gated PixelCNN: van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, 1606.05328."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.autoregressive.base import Autoregressive
from genlab.models.autoregressive.likelihoods import make
from genlab.spec import Count, Positive, Spec

GATED = 0.34  # deviation of tanh(a) σ(b), of a and b ~ N(0, 1)


class PixelCNN(Autoregressive):
    """A gated PixelCNN: a vertical stack of the rows above, and a horizontal one of the row so far (figure 2).

    Args:
        likelihood: "bernoulli" for binary data, "categorical" for a softmax over any number of levels.
        channels: features of each stack; those of a picture of C channels come in C groups, a group each.
        layers: gated layers after the first one.
        kernel, first_kernel: sides of the convolutions, odd; half of each is masked, so half is what is computed.
        hidden: features of the two 1×1 convolutions before the output.
        conditional: learn p(x | y), the class adding a bias to each gate (equation 4).

    Raises:
        UserError: the data is not made of discrete levels, or a side is even, or a channel has no features.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        likelihood: Literal["bernoulli", "categorical"] = "bernoulli",
        channels: Positive = 128,
        layers: Count = 14,
        kernel: Annotated[int, Ge(3)] = 3,
        first_kernel: Annotated[int, Ge(3)] = 7,
        hidden: Positive = 256,
        conditional: bool = False,
    ) -> None:
        super().__init__(spec, make(likelihood, spec), conditional=conditional)
        if kernel % 2 == 0 or first_kernel % 2 == 0:
            raise UserError(
                f"a kernel has a middle: set model.kernel={kernel | 1} model.first_kernel={first_kernel | 1}"
            )
        groups = spec.shape[0]
        if channels % groups or hidden % groups:
            raise UserError(
                f"a picture of {groups} channels needs model.channels and model.hidden divisible by {groups}"
            )
        classes = spec.classes if conditional else 0
        self.first = GatedLayer(
            groups, channels, first_kernel, groups=groups, classes=classes, first=True
        )
        self.layers = nn.ModuleList(
            GatedLayer(
                channels, channels, kernel, groups=groups, classes=classes, last=i == layers - 1
            )
            for i in range(layers)
        )
        self.head = nn.Sequential(
            nn.ReLU(),
            Grouped(channels, hidden, 1, groups=groups),
            nn.ReLU(),
            Grouped(hidden, groups * self.likelihood.params, 1, groups=groups),
        )

    def outputs(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the likelihood's params (B, P, C, H, W) of x (B, C, H, W)."""
        u = self.scaled(x)
        # the vertical stack at a row begins with the rows above it: a row of zeros comes in at the top
        v, h = self.first(F.pad(u, (0, 0, 1, 0))[:, :, :-1], u, y)
        for layer in self.layers:
            v, h = layer(v, h, y)
        return self.head(h).unflatten(1, (self.spec.shape[0], -1)).transpose(1, 2)


class GatedLayer(nn.Module):
    """Figure 2: (v, h) -> (v, h), of features whose rows above (v) and whose row so far (h) are all that they know.

    The first layer's h may not see the pixel itself, and it has no residual; the last one's v goes to h alone.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        kernel: int,
        *,
        groups: int,
        classes: int = 0,
        first: bool = False,
        last: bool = False,
    ) -> None:
        super().__init__()
        half = kernel // 2
        self.half, self.first, self.last = half, first, last
        self.vertical = nn.Conv2d(inputs, 2 * channels, (half + 1, kernel), padding=half)
        self.horizontal = Grouped(
            inputs, 2 * channels, half + 1, groups=groups, halves=2, strict=first
        )
        self.across = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.out = Grouped(channels, channels, 1, groups=groups)
        self.classes = nn.Embedding(classes, 2 * channels) if classes else None
        self.initialise()

    def initialise(self) -> None:
        """Draw weights that give the two inputs of a gate unit variance: deviations as they are lose two thirds in each gate."""
        half = 0.5**0.5  # the horizontal gate's input is a sum of two
        scales = {
            self.vertical: 1.0 if self.first else 1 / GATED,
            self.horizontal: half,
            self.across: half,
            self.out: 1.0,
        }
        with torch.no_grad():
            for conv, scale in scales.items():
                seen = conv.mask if isinstance(conv, Grouped) else torch.ones_like(conv.weight)
                fan_in = seen.sum((1, 2, 3), keepdim=True).clamp_min(
                    1
                )  # of red before all others: nothing
                conv.weight.normal_().mul_(scale / fan_in.sqrt())
                conv.bias.zero_()

    def forward(self, v: Tensor, h: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)[
            :, :, : v.shape[2]
        ]  # (B, 2F, H, W): a row and the half kernel above it
        if self.classes is not None:
            above = (
                above + self.classes(y)[:, :, None, None]
            )  # equation 4: by way of `across` in both gates
        out = self.out(gate(self.horizontal(h) + self.across(above)))
        return v if self.last else gate(above), out if self.first else h + out


class Grouped(nn.Conv2d):
    """A causal 1×k convolution of a pixel and the k − 1 to the left of it, whose features come in a group a channel.

    At the pixel itself a group sees the groups up to itself, or with `strict` only those before it: red, green, blue.
    Each of `halves` equal parts of the outputs has all groups, as a gate needs it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        k: int,
        *,
        groups: int,
        halves: int = 1,
        strict: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, (1, k), padding=(0, k - 1))
        mask = torch.ones_like(self.weight)  # (out, in, 1, k)
        to, of = (
            torch.arange(n) * groups // n for n in (outputs // halves, inputs)
        )  # each feature's group
        to = to.repeat(halves)
        mask[..., 0, -1] = (to[:, None] > of if strict else to[:, None] >= of).to(mask)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return F.conv2d(x, weight, self.bias, padding=self.padding)[..., : x.shape[3]]


def gate(x: Tensor) -> Tensor:
    """Return tanh(a) ⊙ σ(b) (B, F, H, W) of the halves a, b of x (B, 2F, H, W): equation 2."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()
