"""Glow: Kingma & Dhariwal 2018, https://arxiv.org/abs/1807.03039."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from genlab.errors import UserError
from genlab.models.flow.couplings import Coupling, coupled
from genlab.models.flow.elementwise import Affine, Elementwise
from genlab.models.flow.flow import Alpha, Flow, check
from genlab.models.flow.linear import ActNorm, Mixing
from genlab.models.flow.transforms import Chain, Inverse, MultiScale, Squeeze, Transform
from genlab.nn.mlp import MLP
from genlab.spec import Positive, Spec

Net = Callable[[int, int], nn.Sequential]  # (inputs, outputs) -> a network


class Glow(Flow):
    """Steps of actnorm, 1×1 convolution and affine coupling; images lose half of their values after each scale but the last.

    What leaves has a Gaussian that the values that stay choose, written as one more affine coupling; a last actnorm is the
    learned prior of the top.

    Args:
        steps: at each scale (the paper's K).
        scales: for images (the paper's L), each of which halves the sides; None: as often as they are even, at most 3.
        channels: for images: width of the couplings' networks.
        hidden: for points: widths of the couplings' networks.
        alpha: for images: the logit's margin; None: no logit, as in the paper.
        conditional: learn p(x|y), each class with a base of its own.

    Raises:
        UserError: the data has no density, or the image cannot be halved that often.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        steps: Positive = 32,
        scales: Positive | None = None,
        channels: Positive = 512,
        hidden: tuple[Positive, ...] = (64, 64),
        alpha: Alpha | None = None,
        conditional: bool = False,
    ) -> None:
        check("glow", spec, conditional=conditional)
        if spec.kind == "image":
            net = lambda inputs, outputs: convolutions(inputs, channels, outputs)  # noqa: E731
            transform = image_transform("glow", spec.shape, steps, scales, net, Affine())
        else:
            net = lambda inputs, outputs: MLP(inputs, hidden, outputs)  # noqa: E731
            transform = Chain(
                *(step(spec.dim, net, Affine(), second=bool(i % 2)) for i in range(steps))
            )
        super().__init__(
            spec, Chain(transform, ActNorm(spec.dim)), alpha=alpha, conditional=conditional
        )


def step(size: int, net: Net, map: Elementwise, *, second: bool = False) -> Transform:
    """Return one step of flow (figure 2a) of `size` values or channels."""
    return Chain(ActNorm(size), Mixing(size), coupling(size, net, map, second=second))


def coupling(size: int, net: Net, map: Elementwise, *, second: bool = False) -> Coupling:
    kept, changed = coupled(size, second=second)
    return Coupling(size, net(kept, changed * map.outputs), map, second=second)


def image_transform(
    name: str, shape: tuple[int, ...], steps: int, scales: int | None, net: Net, map: Elementwise
) -> Transform:
    """Return figure 2b: at each scale a squeeze, the steps, and, but for the last, the Gaussian of the half that leaves.

    Raises:
        UserError: the image (C, H, W) cannot be halved that often.
    """
    most = halvings(shape)
    scales = scales or min(most, 3)
    if not 0 < scales <= most:
        raise UserError(
            f"{name} halves an image model.scales={scales or 1} times, and {shape} can be {most} times; "
            + (
                f"set model.scales={most} or less, or another dataset.size"
                if most
                else "set an even dataset.size"
            )
        )
    levels: list[Transform] = []
    c = shape[0]
    for scale in range(scales):
        c *= 4
        level = [Squeeze(), *(step(c, net, map) for _ in range(steps))]
        last = scale == scales - 1
        levels.append(
            Chain(*level, Inverse(Squeeze()) if last else coupling(c, net, Affine(), second=True))
        )
        c //= 2
    return MultiScale(levels, shape)


def halvings(shape: tuple[int, ...]) -> int:
    """Return how often the sides of an image (C, H, W) can be halved."""
    h, w = shape[1:]
    return 1 + halvings((1, h // 2, w // 2)) if h % 2 == w % 2 == 0 else 0


def convolutions(inputs: int, channels: int, outputs: int) -> nn.Sequential:
    """Return section B.1's network (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, outputs, 3, padding=1),
    )
