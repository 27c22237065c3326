"""RealNVP: Dinh, Sohl-Dickstein & Bengio 2017, https://arxiv.org/abs/1605.08803."""

from __future__ import annotations

from genlab.errors import UserError
from genlab.models.flow.couplings import AffineCoupling, alternating, by_channel, checkerboard
from genlab.models.flow.flow import Alpha, Flow, check
from genlab.models.flow.transforms import Chain, MultiScale, Squeeze, Transform
from genlab.nn.mlp import MLP, Activation
from genlab.nn.resnet import ResidualNet
from genlab.spec import Count, Positive, Spec


class RealNVP(Flow):
    """A flow of affine couplings; on images the paper's multi-scale architecture, on points a chain of couplings.

    Batch normalisation is left out, so that a sample's density depends on that sample alone, in training too.

    Args:
        couplings, hidden, activation: for points: how many couplings, and each one's network.
        channels, blocks: for images: width and residual blocks of each network; the width doubles from scale to scale.
        scales: for images: how often half of the values leave, plus one; None: until a side is odd or at most 4.
        alpha: for images: the logit's margin (section 4.1).
        conditional: learn p(x|y), each class with a base of its own.

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
        alpha: Alpha = 0.05,
        conditional: bool = False,
    ) -> None:
        check("realnvp", spec, conditional=conditional, least=1 if spec.kind == "image" else 2)
        if spec.kind == "points":
            transform = points_transform(spec.dim, couplings, hidden, activation)
        else:
            check_scales(spec.shape, scales)
            transform = image_transform(
                spec.shape, channels, blocks, scales or most_scales(spec.shape)
            )
        super().__init__(spec, transform, alpha=alpha, conditional=conditional)


def points_transform(
    dim: int, couplings: int, hidden: tuple[int, ...], activation: Activation
) -> Transform:
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
        channelwise = [AffineCoupling(net, by_channel(c, i % 2)) for i, net in enumerate(nets)]
        levels.append(Chain(*board, Squeeze(), *channelwise))
        c //= 2
    return MultiScale([*levels, Chain(*checkerboards((c, h, w), 4, channels, blocks))], shape)


def checkerboards(
    shape: tuple[int, ...], n: int, channels: int, blocks: int
) -> list[AffineCoupling]:
    """Return n couplings of images (B, C, H, W) whose checkerboard masks take turns."""
    nets = (ResidualNet(shape[0], channels, blocks, 2 * shape[0]) for _ in range(n))
    return [AffineCoupling(net, checkerboard(shape, i % 2)) for i, net in enumerate(nets)]


def most_scales(shape: tuple[int, ...]) -> int:
    """Return how many scales an image (C, H, W) has when halved until a side is odd or at most 4 (section 4.1)."""
    h, w = shape[1:]
    return 1 + most_scales((1, h // 2, w // 2)) if h % 2 == w % 2 == 0 and min(h, w) > 4 else 1


def check_scales(shape: tuple[int, ...], scales: int | None) -> None:
    """Refuse images that cannot be halved `scales` − 1 times."""
    if scales and any(side % 2 ** (scales - 1) for side in shape[1:]):
        raise UserError(
            f"realnvp halves an image model.scales - 1 = {scales - 1} times, and {shape} cannot be; "
            f"set model.scales={most_scales(shape)} or less, or another dataset.size"
        )
