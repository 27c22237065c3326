"""Neural spline flows: Durkan, Bekasov, Murray & Papamakarios 2019.

https://arxiv.org/abs/1906.04032.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from genlab.errors import UserError
from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.elementwise import MIN_BIN_SIZE, Spline
from genlab.models.flow.flow import Alpha, Flow, validate_spec
from genlab.models.flow.glow import make_coupling, make_multiscale_transform
from genlab.models.flow.linear import ActNorm, Invertible1x1Conv
from genlab.models.flow.maf import alternating_positions
from genlab.models.flow.transforms import Chain, Flatten, Transform
from genlab.nn.masked import MaskedMLP
from genlab.nn.mlp import MLP, Activation
from genlab.nn.resnet import ResidualNet
from genlab.spec import Count, DataSpec, Positive, PositiveFloat


class NSF(Flow):
    """Rational-quadratic splines in autoregressive layers or in couplings.

    Couplings of images have Glow's architecture.

    Args:
        layer_type: "autoregressive": masked networks, one pass per value of a sample; "coupling":
            one pass in both directions.
        num_layers: number of layers; with images, at each scale.
        hidden, activation: for points, and for autoregressive layers of images: of each network.
        channels, num_blocks: for couplings of images: width and residual blocks of each network.
        num_scales: for couplings of images; None halves the sides as long as they are even, up to
            3 times.
        num_bins, tail_bound: of each spline: K bins over [−tail_bound, tail_bound], the identity
            outside.
        alpha: for images: the margin of the logit; None disables the logit.
        conditional: learn p(x|y) with one base distribution per class.

    Raises:
        UserError: the data is discrete, or the options do not fit the data.
    """

    def __init__(
        self,
        spec: DataSpec,
        *,
        layer_type: Literal["autoregressive", "coupling"] = "autoregressive",
        num_layers: Positive = 3,
        hidden: tuple[Positive, ...] = (64, 64),
        activation: Activation = "relu",
        channels: Positive = 64,
        num_blocks: Count = 2,
        num_scales: Positive | None = None,
        num_bins: Positive = 8,
        tail_bound: PositiveFloat = 5.0,
        alpha: Alpha | None = 0.05,
        conditional: bool = False,
    ) -> None:
        validate_spec("nsf", spec, conditional=conditional)
        if not 2 <= num_bins < 1 / MIN_BIN_SIZE:
            raise UserError(
                f"model.num_bins={num_bins}: a spline has at least 2 and fewer than "
                f"{1 / MIN_BIN_SIZE:,.0f} bins"
            )
        spline = Spline(num_bins, tail_bound)

        def make_image_net(inputs: int, outputs: int) -> nn.Sequential:
            return ResidualNet(inputs, channels, num_blocks, outputs)

        def make_point_net(inputs: int, outputs: int) -> nn.Sequential:
            return MLP(inputs, hidden, outputs, activation=activation)

        layers: list[Transform]
        if layer_type == "coupling" and spec.kind == "image":
            layers = [
                make_multiscale_transform(
                    "nsf", spec.shape, num_layers, num_scales, make_image_net, spline
                ),
                ActNorm(spec.dim),
            ]
        elif layer_type == "coupling":
            layers = [Flatten(spec.shape)]
            for i in range(num_layers):
                layers.append(Invertible1x1Conv(spec.dim))
                layers.append(
                    make_coupling(spec.dim, make_point_net, spline, keep_second=bool(i % 2))
                )
        else:
            layers = [Flatten(spec.shape)]
            for i in range(num_layers):
                order = alternating_positions(spec.dim, i)
                net = MaskedMLP(
                    spec.dim, hidden, spline.num_params, order=order, activation=activation
                )
                layers.append(Autoregressive(net, spline))
        super().__init__(spec, Chain(*layers), alpha=alpha, conditional=conditional)
