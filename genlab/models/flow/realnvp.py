"""RealNVP: Dinh, Sohl-Dickstein & Bengio 2017, https://arxiv.org/abs/1605.08803."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.flow.base import StandardNormal
from genlab.models.flow.transforms import (
    AffineCoupling,
    Chain,
    Logit,
    MultiScale,
    Squeeze,
    Transform,
    alternating,
    checkerboard,
    halves,
)
from genlab.nn.mlp import MLP, Activation
from genlab.nn.resnet import ResidualNet
from genlab.spec import Batch, Count, Positive, Spec


class RealNVP(nn.Module):
    """A flow of affine couplings; on images the paper's multi-scale architecture, on points a chain of couplings.

    Batch normalisation is left out, so that a sample's density depends on that sample alone, in training too.

    Args:
        couplings, hidden, activation: for points: how many couplings, and each one's network.
        channels, blocks: for images: width and residual blocks of each network; the width doubles from scale to scale.
        scales: for images: how often half of the values leave, plus one; None: until a side is odd or at most 4.
        alpha: for images: the logit's margin (section 4.1).

    Raises:
        UserError: the data has no density, or the image cannot be halved that often.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        couplings: Positive = 8,
        hidden: tuple[Positive, ...] = (64, 64),
        activation: Activation = "relu",
        channels: Positive = 32,
        blocks: Count = 4,
        scales: Positive | None = None,
        alpha: Annotated[float, Interval(gt=0, lt=0.5)] = 0.05,
    ) -> None:
        super().__init__()
        check(spec, scales)
        self.spec = spec
        if spec.kind == "points":
            self.transform = points_transform(spec.dim, couplings, hidden, activation)
        else:
            image = image_transform(spec.shape, channels, blocks, scales or most_scales(spec.shape))
            self.transform = Chain(Logit(alpha, spec.range), image)
        self.base = StandardNormal(spec.dim)

    def log_prob(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(x) (B,) in nats, of x (B, *shape) in its own space: equation 3."""
        refuse_classes(y)
        z, ladj = self.transform(x)
        return self.base.log_prob(z) + ladj

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean −log p(x) in nats a sample."""
        return {"loss": -self.log_prob(batch.x).mean()}

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, D)."""
        return self.transform(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return x (B, *shape); an image is cut to its range, past which the logit's margin reaches."""
        x = self.transform.inverse(z)
        return x.clamp(*self.spec.range) if self.spec.kind == "image" else x

    def prior(self, n: int) -> Tensor:
        """Draw n codes (n, D) from N(0, I)."""
        return self.base.sample(n)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draw n items (n, *shape)."""
        refuse_classes(y)
        return self.decode(self.prior(n))


def points_transform(dim: int, couplings: int, hidden: tuple[int, ...], activation: Activation) -> Transform:
    """Return couplings of a point (B, dim) whose masks take turns."""
    nets = (MLP(dim, hidden, 2 * dim, activation=activation) for _ in range(couplings))
    return Chain(*(AffineCoupling(net, alternating(dim, i % 2)) for i, net in enumerate(nets)))


def image_transform(shape: tuple[int, ...], channels: int, blocks: int, scales: int) -> Transform:
    """Return section 3.6's map: at each scale 3 checkerboard couplings, a squeeze, 3 by channel; at the last 4."""
    c, h, w = shape
    levels: list[Transform] = []
    for _ in range(scales - 1):
        board = checkerboards((c, h, w), 3, channels, blocks)
        c, h, w, channels = 4 * c, h // 2, w // 2, 2 * channels
        nets = (ResidualNet(c, channels, blocks, 2 * c) for _ in range(3))
        by_channel = [AffineCoupling(net, halves(c, i % 2)) for i, net in enumerate(nets)]
        levels.append(Chain(*board, Squeeze(), *by_channel))
        c //= 2
    return MultiScale([*levels, Chain(*checkerboards((c, h, w), 4, channels, blocks))], shape)


def checkerboards(shape: tuple[int, ...], n: int, channels: int, blocks: int) -> list[AffineCoupling]:
    """Return n couplings of images (B, C, H, W) whose checkerboard masks take turns."""
    nets = (ResidualNet(shape[0], channels, blocks, 2 * shape[0]) for _ in range(n))
    return [AffineCoupling(net, checkerboard(shape, i % 2)) for i, net in enumerate(nets)]


def most_scales(shape: tuple[int, ...]) -> int:
    """Return how many scales an image (C, H, W) has when halved until a side is odd or at most 4 (section 4.1)."""
    h, w = shape[1:]
    return 1 + most_scales((1, h // 2, w // 2)) if h % 2 == w % 2 == 0 and min(h, w) > 4 else 1


def check(spec: Spec, scales: int | None) -> None:
    """Refuse data without a density, and images that cannot be halved `scales` − 1 times."""
    if spec.kind not in ("image", "points"):
        raise UserError(f"realnvp takes images or points, and this is {spec.kind} data of shape {spec.shape}")
    if spec.discrete:
        also = " dataset.binarize=none" if spec.levels == 2 else ""
        raise UserError(f"realnvp is a density and this data is discrete; set dataset.dequantise=true{also}")
    if spec.kind == "points" and spec.dim < 2:
        raise UserError(f"realnvp's couplings need at least two values a point, and this data has {spec.dim}")
    if spec.kind == "image" and scales and any(side % 2 ** (scales - 1) for side in spec.shape[1:]):
        raise UserError(
            f"realnvp halves an image model.scales - 1 = {scales - 1} times, and {spec.shape} cannot be; "
            f"set model.scales={most_scales(spec.shape)} or less, or another dataset.size"
        )


def refuse_classes(y: Tensor | None) -> None:
    """Refuse labels: this model has no p(x|y)."""
    if y is not None:
        raise UserError("realnvp knows no classes, and classes were given")
