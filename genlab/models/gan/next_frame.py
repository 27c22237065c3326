"""Mathieu, Couprie & LeCun 2016, Deep Multi-Scale Video Prediction Beyond Mean Square Error, https://arxiv.org/abs/1511.05440."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.losses import Name
from genlab.models.gan.translation import Translation
from genlab.spec import NonNegative, Positive, Spec

# The networks of the four scales, the coarsest first (the paper's tables 1 and 2): maps in parts of the width, and kernels.
GENERATORS = (
    ((1, 2, 1), (3, 3, 3, 3)),
    ((1, 2, 1), (5, 3, 3, 5)),
    ((1, 2, 4, 2, 1), (5, 3, 3, 3, 3, 5)),
    ((1, 2, 4, 2, 1), (7, 5, 5, 5, 5, 7)),
)
DISCRIMINATORS = (  # … and units of the dense layers
    ((0.5,), (3,), (4, 2)),
    ((0.5, 1, 1), (3, 3, 3), (8, 4)),
    ((1, 2, 2), (5, 5, 5), (8, 4)),
    ((1, 2, 4, 1), (7, 7, 5, 5), (8, 4)),
)
COARSEST = 4  # pixels a side, at least, of the coarsest scale
POOLED = 12  # pixels a side, at most, that a dense layer is given: what the paper's patches of 32×32 leave


class NextFrame(Translation):
    """The next frames of a film from those past: made at a coarse scale, then refined at twice the size, up to the full.

    Small images have as few scales as leave the coarsest 4 pixels a side. Sources may be of any size when it is asked.

    Args:
        width: maps of the first layer at each scale, the coarsest first.
        p: the power of the error ‖y − ŷ‖_p^p, and `alpha` that of the gradient difference; each a mean over values.
        error, gradient_difference, adversarial: weights; 0: without. All losses are means over the scales.
        restraints: what holds the discriminators smooth, see `Restrained`.

    Raises:
        UserError: the data has no sources, or they are not as high and wide as the targets.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Annotated[tuple[Positive, ...], Len(1, 4)] = (128, 128, 128, 128),
        p: Literal[1, 2] = 2,
        alpha: Literal[1, 2] = 1,
        error: NonNegative = 1.0,
        gradient_difference: NonNegative = 1.0,
        adversarial: NonNegative = 0.05,
        loss: Name = "non_saturating",
        **restraints,
    ) -> None:
        super().__init__(spec, loss=loss, adversarial=adversarial, **restraints)
        past, size = maps(spec.source), spec.shape[-2:]
        if spec.source.shape[-2:] != size or min(size) < COARSEST:
            raise UserError(f"NextFrame needs sources as high and wide as its targets, and this dataset gives "
                            f"{spec.source.shape} and {spec.shape}; choose dataset=moving_mnist")  # fmt: skip
        if error == gradient_difference == adversarial == 0:
            raise UserError("NextFrame has nothing to minimise; set model.error=1")
        self.p, self.alpha, self.error, self.gradient_difference = (
            p,
            alpha,
            error,
            gradient_difference,
        )
        most = (min(size) // COARSEST).bit_length()
        width = width[:most]
        self.multiple = 2 ** (len(width) - 1)
        self.generator = Generator(past, maps(spec), width)
        if adversarial:
            sizes = [(size[0] >> k, size[1] >> k) for k in reversed(range(len(width)))]
            self.discriminator = self.restrained(Discriminator(past + maps(spec), width, sizes))

    def truth(self, x: Tensor) -> list[Tensor]:
        return pyramid(x.flatten(1, -3), len(self.generator.nets))

    def errors(self, made: list[Tensor], truth: list[Tensor]) -> dict[str, Tensor]:
        found = {}
        # eq. 5: L_p = ‖Y − Ŷ‖_p^p
        if self.error:
            each = [(y - z).abs().pow(self.p).mean() for y, z in zip(truth, made, strict=True)]
            found["error"] = self.error * torch.stack(each).mean()
        if self.gradient_difference:
            each = [gradient_difference(y, z, self.alpha) for y, z in zip(truth, made, strict=True)]
            found["gradient_difference"] = self.gradient_difference * torch.stack(each).mean()
        return found or {"error": made[-1].new_zeros(())}

    @torch.no_grad()
    def translate(self, cond: Tensor) -> Tensor:
        """Return the frames (B, *shape) that follow those of each source (B, *source)."""
        return self.generator(cond)[-1].clamp(*self.spec.range).unflatten(1, self.spec.shape[:-2])


# eq. 6: L_gdl = Σ ||Y_{i,j} − Y_{i−1,j}| − |Ŷ_{i,j} − Ŷ_{i−1,j}||^α + ||Y_{i,j−1} − Y_{i,j}| − |Ŷ_{i,j−1} − Ŷ_{i,j}||^α
def gradient_difference(y: Tensor, made: Tensor, alpha: int = 1) -> Tensor:
    """Return how far the steps between neighbouring pixels (B, C, H, W) differ in size, a mean over each direction."""
    steps = (
        (y.diff(dim=d).abs() - made.diff(dim=d).abs()).abs().pow(alpha).mean() for d in (-2, -1)
    )
    return sum(steps)


class Generator(nn.Module):
    """Past frames (B, …, H, W) to the next at every scale, the coarsest first: a list of (B, outputs, H/2^k, W/2^k).

    The paper's tanh at the end is left out: on dark frames it saturates before anything moves. Weights are He et al.'s (2015).
    """

    def __init__(self, past: int, outputs: int, width: tuple[int, ...]) -> None:
        super().__init__()
        self.nets = nn.ModuleList()
        for k, (w, (parts, kernels)) in enumerate(zip(width, GENERATORS, strict=False)):
            layers: list[nn.Module] = []
            widths = [past + (outputs if k else 0), *(w * part for part in parts), outputs]
            for (i, o), kernel in zip(pairwise(widths), kernels, strict=True):
                layers += [nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
            self.nets.append(nn.Sequential(*layers[:-1]))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)

    # eq. 4: Ŷ_k = u_k(Ŷ_{k−1}) + G'_k(X_k, u_k(Ŷ_{k−1}))
    def forward(self, cond: Tensor) -> list[Tensor]:
        made: list[Tensor] = []
        for net, x in zip(self.nets, pyramid(cond.flatten(1, -3), len(self.nets)), strict=True):
            if made:
                u = F.interpolate(made[-1], size=x.shape[-2:], mode="bilinear")
                made.append(u + net(torch.cat([x, u], 1)))
            else:
                made.append(net(x))
        return made


class Discriminator(nn.Module):
    """D_k: past frames and the next at every scale to a logit for each scale (B, scales)."""

    def __init__(self, channels: int, width: tuple[int, ...], sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self.nets = nn.ModuleList()
        for w, (parts, kernels, dense), size in zip(width, DISCRIMINATORS, sizes, strict=False):
            layers: list[nn.Module] = []
            widths = [channels, *(max(1, int(w * part)) for part in parts)]
            for (i, o), kernel in zip(pairwise(widths), kernels, strict=True):
                layers += [nn.Conv2d(i, o, kernel), nn.LeakyReLU(0.2, inplace=True)]
            shrink = sum(kernel - 1 for kernel in kernels)
            pooled = tuple(min(POOLED, side - shrink) for side in size)
            units = [widths[-1] * pooled[0] * pooled[1], *(w * part for part in dense)]
            layers += [nn.AdaptiveMaxPool2d(pooled), nn.Flatten()]
            for i, o in pairwise(units):
                layers += [nn.Linear(i, o), nn.LeakyReLU(0.2, inplace=True)]
            self.nets.append(nn.Sequential(*layers, nn.Linear(units[-1], 1)))

    def forward(self, cond: Tensor, frames: list[Tensor]) -> Tensor:
        past = pyramid(cond.flatten(1, -3), len(self.nets))
        each = [
            net(torch.cat([x, y], 1)) for net, x, y in zip(self.nets, past, frames, strict=True)
        ]
        return torch.cat(each, 1)  # (B, scales)


def pyramid(x: Tensor, scales: int) -> list[Tensor]:
    """Return images (B, C, H, W) at each scale, the coarsest first and the last as they are."""
    h, w = x.shape[-2:]
    return [F.adaptive_avg_pool2d(x, (h >> k, w >> k)) if k else x for k in reversed(range(scales))]


def maps(spec: Spec) -> int:
    """Return how many maps (H, W) an item has: of a film, frames times channels."""
    return spec.dim // (spec.shape[-2] * spec.shape[-1])
