"""RealNVP: Dinh, Sohl-Dickstein & Bengio 2017, https://arxiv.org/abs/1605.08803."""

from __future__ import annotations

from genlab.errors import UserError
from genlab.models.flow.couplings import (
    AffineCoupling,
    alternating_mask,
    channel_mask,
    checkerboard_mask,
)
from genlab.models.flow.flow import Alpha, Flow, validate_spec
from genlab.models.flow.transforms import Chain, MultiScale, Squeeze, Transform
from genlab.nn.mlp import MLP, Activation
from genlab.nn.resnet import ResidualNet
from genlab.spec import Count, DataSpec, Positive


class RealNVP(Flow):
    """A flow of affine couplings: the paper's multi-scale architecture, or a chain for points.

    Batch normalization is left out, so that the density of a sample depends only on that sample, in
    training too.

    Args:
        num_couplings, hidden, activation: for points: number of couplings, and the network of each.
        channels, num_blocks: for images: width and residual blocks of each network; the width
            doubles from scale to scale.
        num_scales: for images: half of the values leave after each scale but the last; None: halve
            until a side is odd or at most 4.
        alpha: for images: the margin of the logit (section 4.1).
        conditional: learn p(x|y) with one base distribution per class.

    Raises:
        UserError: the data is discrete, or the image cannot be halved that often.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        num_couplings: Positive = 8,
        hidden: tuple[Positive, ...] = (64, 64),
        activation: Activation = "relu",
        channels: Positive = 32,
        num_blocks: Count = 4,
        num_scales: Positive | None = None,
        alpha: Alpha = 0.05,
        conditional: bool = False,
    ) -> None:
        min_dim = 1 if spec.kind == "image" else 2
        validate_spec("realnvp", spec, conditional=conditional, min_dim=min_dim)
        if spec.kind == "points":
            transform = make_point_transform(spec.dim, num_couplings, hidden, activation)
        else:
            check_num_scales(spec.shape, num_scales)
            num_scales = num_scales or max_num_scales(spec.shape)
            transform = make_image_transform(spec.shape, channels, num_blocks, num_scales)
        super().__init__(spec, transform, alpha=alpha, conditional=conditional)


def make_point_transform(
    dim: int, num_couplings: int, hidden: tuple[int, ...], activation: Activation
) -> Transform:
    """Return couplings of points (B, dim) with alternating masks."""
    nets = (MLP(dim, hidden, 2 * dim, activation=activation) for _ in range(num_couplings))
    return Chain(*(AffineCoupling(net, alternating_mask(dim, i % 2)) for i, net in enumerate(nets)))


def make_image_transform(
    shape: tuple[int, ...], channels: int, num_blocks: int, num_scales: int
) -> Transform:
    """Return the transform of section 3.6.

    Each scale has 3 checkerboard couplings, a squeeze and 3 channel-wise couplings; the last scale
    has 4 checkerboard couplings.
    """
    c, h, w = shape
    scales: list[Transform] = []
    for _ in range(num_scales - 1):
        checkerboard = make_checkerboard_couplings((c, h, w), 3, channels, num_blocks)
        c, h, w, channels = 4 * c, h // 2, w // 2, 2 * channels
        nets = (ResidualNet(c, channels, num_blocks, 2 * c) for _ in range(3))
        channelwise = [AffineCoupling(net, channel_mask(c, i % 2)) for i, net in enumerate(nets)]
        scales.append(Chain(*checkerboard, Squeeze(), *channelwise))
        c //= 2
    last = Chain(*make_checkerboard_couplings((c, h, w), 4, channels, num_blocks))
    return MultiScale([*scales, last], shape)


def make_checkerboard_couplings(
    shape: tuple[int, ...], n: int, channels: int, num_blocks: int
) -> list[AffineCoupling]:
    """Return n couplings of images (B, C, H, W) with alternating checkerboard masks."""
    nets = (ResidualNet(shape[0], channels, num_blocks, 2 * shape[0]) for _ in range(n))
    return [AffineCoupling(net, checkerboard_mask(shape, i % 2)) for i, net in enumerate(nets)]


def max_num_scales(shape: tuple[int, ...]) -> int:
    """Return the number of scales of an image (C, H, W) (section 4.1).

    It is halved until a side is odd or at most 4.
    """
    h, w = shape[1:]
    return 1 + max_num_scales((1, h // 2, w // 2)) if h % 2 == w % 2 == 0 and min(h, w) > 4 else 1


def check_num_scales(shape: tuple[int, ...], num_scales: int | None) -> None:
    """Raise an error if images cannot be halved `num_scales` − 1 times."""
    if num_scales and any(side % 2 ** (num_scales - 1) for side in shape[1:]):
        raise UserError(
            f"realnvp halves an image model.num_scales - 1 = {num_scales - 1} times, but {shape} "
            f"cannot be halved that often; set model.num_scales={max_num_scales(shape)} or less, "
            "or another dataset.size"
        )
