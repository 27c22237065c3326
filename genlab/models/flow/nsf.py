"""Neural spline flows: Durkan, Bekasov, Murray & Papamakarios 2019, https://arxiv.org/abs/1906.04032."""

from __future__ import annotations

from typing import Literal

from genlab.errors import UserError
from genlab.models.flow.autoregressive import Autoregressive
from genlab.models.flow.elementwise import LEAST, Spline
from genlab.models.flow.flow import Alpha, Flow, check
from genlab.models.flow.glow import coupling, image_transform
from genlab.models.flow.linear import ActNorm, Mixing
from genlab.models.flow.maf import in_turns
from genlab.models.flow.transforms import Chain, Flatten, Transform
from genlab.nn.masked import MaskedMLP
from genlab.nn.mlp import MLP, Activation
from genlab.nn.resnet import ResidualNet
from genlab.spec import Count, Positive, PositiveFloat, Spec


class NSF(Flow):
    """Rational-quadratic splines, autoregressive or in couplings; couplings of images are those of Glow's architecture.

    Args:
        kind: "autoregressive": masked networks, a pass for each value of a sample; "coupling": one pass each way.
        layers: how many; at each scale of an image.
        hidden, activation: for points, and autoregressive images: each layer's network.
        channels, blocks: for couplings of images: width and residual blocks of each network.
        scales: for couplings of images; None: as often as the sides are even, at most 3.
        bins, bound: of each spline: K bins over [−bound, bound], the identity outside.
        alpha: for images: the logit's margin; None: no logit.
        conditional: learn p(x|y), each class with a base of its own.

    Raises:
        UserError: the data has no density, or the options do not fit it.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        kind: Literal["autoregressive", "coupling"] = "autoregressive",
        layers: Positive = 3,
        hidden: tuple[Positive, ...] = (64, 64),
        activation: Activation = "relu",
        channels: Positive = 64,
        blocks: Count = 2,
        scales: Positive | None = None,
        bins: Positive = 8,
        bound: PositiveFloat = 5.0,
        alpha: Alpha | None = 0.05,
        conditional: bool = False,
    ) -> None:
        check("nsf", spec, conditional=conditional)
        if not 2 <= bins < 1 / LEAST:
            raise UserError(
                f"model.bins={bins}: a spline has at least 2 bins and less than {1 / LEAST:,.0f}"
            )
        map = Spline(bins, bound)
        if kind == "coupling" and spec.kind == "image":
            net = lambda inputs, outputs: ResidualNet(inputs, channels, blocks, outputs)  # noqa: E731
            transform = Chain(
                image_transform("nsf", spec.shape, layers, scales, net, map), ActNorm(spec.dim)
            )
        else:
            chain: list[Transform] = [Flatten(spec.shape)]
            for i in range(layers):
                if kind == "coupling":
                    net = lambda inputs, outputs: MLP(
                        inputs, hidden, outputs, activation=activation
                    )  # noqa: E731
                    chain += [Mixing(spec.dim), coupling(spec.dim, net, map, second=bool(i % 2))]
                else:
                    order = in_turns(spec.dim, i)
                    net = MaskedMLP(
                        spec.dim, hidden, map.outputs, order=order, activation=activation
                    )
                    chain.append(Autoregressive(net, map))
            transform = Chain(*chain)
        super().__init__(spec, transform, alpha=alpha, conditional=conditional)
