"""Glow: Kingma & Dhariwal 2018, https://arxiv.org/abs/1807.03039."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from genlab.errors import UserError
from genlab.models.flow.couplings import Coupling, kept_and_changed_sizes
from genlab.models.flow.elementwise import Affine, Elementwise
from genlab.models.flow.flow import Alpha, Flow, validate_spec
from genlab.models.flow.linear import ActNorm, Invertible1x1Conv
from genlab.models.flow.transforms import Chain, Inverse, MultiScale, Squeeze, Transform
from genlab.nn.mlp import MLP
from genlab.spec import DataSpec, Positive

MakeNet = Callable[[int, int], nn.Sequential]  # (inputs, outputs) -> a network


class Glow(Flow):
    """Steps of actnorm, 1×1 convolution and affine coupling.

    With images, half of the values leave after each scale but the last. They have a Gaussian
    conditioned on the values that stay, written as one more affine coupling. A last actnorm is the
    learned prior of the top.

    Args:
        steps_per_scale: number of steps at each scale (the paper's K).
        num_scales: for images (the paper's L), each of which halves the sides; None halves them as
            long as they are even, up to 3 times.
        channels: for images: width of the networks in the couplings.
        hidden: for points: widths of the networks in the couplings.
        alpha: for images: the margin of the logit; None disables the logit, as in the paper.
        conditional: learn p(x|y) with one base distribution per class.

    Raises:
        UserError: the data is discrete, or the image cannot be halved that often.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        steps_per_scale: Positive = 32,
        num_scales: Positive | None = None,
        channels: Positive = 512,
        hidden: tuple[Positive, ...] = (64, 64),
        alpha: Alpha | None = None,
        conditional: bool = False,
    ) -> None:
        validate_spec("glow", spec, conditional=conditional)

        def make_image_net(inputs: int, outputs: int) -> nn.Sequential:
            return make_coupling_network(inputs, channels, outputs)

        def make_point_net(inputs: int, outputs: int) -> nn.Sequential:
            return MLP(inputs, hidden, outputs)

        transform: Transform
        if spec.kind == "image":
            transform = make_multiscale_transform(
                "glow", spec.shape, steps_per_scale, num_scales, make_image_net, Affine()
            )
        else:
            transform = Chain(
                *(
                    make_flow_step(spec.dim, make_point_net, Affine(), keep_second=bool(i % 2))
                    for i in range(steps_per_scale)
                )
            )
        super().__init__(
            spec, Chain(transform, ActNorm(spec.dim)), alpha=alpha, conditional=conditional
        )


def make_flow_step(
    size: int, make_net: MakeNet, map: Elementwise, *, keep_second: bool = False
) -> Transform:
    """Return one step of flow (figure 2a) of `size` values or channels."""
    return Chain(
        ActNorm(size),
        Invertible1x1Conv(size),
        make_coupling(size, make_net, map, keep_second=keep_second),
    )


def make_coupling(
    size: int, make_net: MakeNet, map: Elementwise, *, keep_second: bool = False
) -> Coupling:
    """Return a coupling of `size` values or channels with a network of matching size."""
    kept, changed = kept_and_changed_sizes(size, keep_second=keep_second)
    net = make_net(kept, changed * map.num_params)
    return Coupling(size, net, map, keep_second=keep_second)


def make_multiscale_transform(
    name: str,
    shape: tuple[int, ...],
    num_steps: int,
    num_scales: int | None,
    make_net: MakeNet,
    map: Elementwise,
) -> Transform:
    """Return the transform of figure 2b.

    Each scale is a squeeze and the steps of flow; each but the last also has the Gaussian of the
    half that leaves.

    Raises:
        UserError: the image (C, H, W) cannot be halved that often.
    """
    max_scales = max_image_halvings(shape)
    num_scales = num_scales or min(max_scales, 3)
    if not 0 < num_scales <= max_scales:
        fix = (
            f"set model.num_scales={max_scales} or less, or another dataset.size"
            if max_scales
            else "set an even dataset.size"
        )
        raise UserError(
            f"{name} halves an image model.num_scales={num_scales or 1} times, but {shape} can be "
            f"halved {max_scales} times; {fix}"
        )
    scales: list[Transform] = []
    c = shape[0]
    for scale in range(num_scales):
        c *= 4
        steps = [make_flow_step(c, make_net, map) for _ in range(num_steps)]
        end: Transform
        if scale == num_scales - 1:
            end = Inverse(Squeeze())
        else:
            end = make_coupling(c, make_net, Affine(), keep_second=True)
        scales.append(Chain(Squeeze(), *steps, end))
        c //= 2
    return MultiScale(scales, shape)


def max_image_halvings(shape: tuple[int, ...]) -> int:
    """Return how often the sides of an image (C, H, W) can be halved."""
    h, w = shape[1:]
    return 1 + max_image_halvings((1, h // 2, w // 2)) if h % 2 == w % 2 == 0 else 0


def make_coupling_network(inputs: int, channels: int, outputs: int) -> nn.Sequential:
    """Return the network of section B.1: (B, inputs, H, W) -> (B, outputs, H, W)."""
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, outputs, 3, padding=1),
    )
