"""Deep Multi-Scale Video Prediction Beyond Mean Square Error.

Mathieu, Couprie & LeCun 2016, https://arxiv.org/abs/1511.05440
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.losses import LossName
from genlab.models.gan.translation_base import PairedTranslationModel, require_source_spec
from genlab.spec import DataSpec, NonNegative, Positive

# The networks of the four scales, the coarsest first (tables 1 and 2 of the paper):
# channels as multiples of the width, and kernel sizes.
GENERATORS = (
    ((1, 2, 1), (3, 3, 3, 3)),
    ((1, 2, 1), (5, 3, 3, 5)),
    ((1, 2, 4, 2, 1), (5, 3, 3, 3, 3, 5)),
    ((1, 2, 4, 2, 1), (7, 5, 5, 5, 5, 7)),
)
# The same, and units of the dense layers as multiples of the width.
DISCRIMINATORS = (
    ((0.5,), (3,), (4, 2)),
    ((0.5, 1, 1), (3, 3, 3), (8, 4)),
    ((1, 2, 2), (5, 5, 5), (8, 4)),
    ((1, 2, 4, 1), (7, 7, 5, 5), (8, 4)),
)
MIN_COARSE_SIDE = 4  # pixels, of the coarsest scale
MAX_POOLED_SIDE = 12  # pixels, before the dense layers: what the paper's 32×32 patches give


class NextFrame(PairedTranslationModel):
    """Predict the next frames of a video at a coarse scale, and refine them at larger ones.

    Small images have fewer scales, so that the coarsest has at least 4 pixels a side. Once trained,
    the model takes frames of any size.

    Args:
        width: maps of the first layer at each scale, the coarsest first.
        p: power of the error ‖y − ŷ‖_p^p; `alpha`: power of the gradient difference loss. Each is a
            mean over values.
        error_weight, gradient_difference_weight, adversarial_weight: of the losses; 0 disables one.
            All losses are means over the scales.
        regularization: of the discriminators; see `DiscriminatorRegularization`.

    Raises:
        UserError: the data lacks sources, or they are not as high and wide as the targets.
    """

    generator: MultiScaleGenerator

    def __init__(
        self,
        spec: DataSpec,
        *,
        width: Annotated[tuple[Positive, ...], Len(1, 4)] = (128, 128, 128, 128),
        p: Literal[1, 2] = 2,
        alpha: Literal[1, 2] = 1,
        error_weight: NonNegative = 1.0,
        gradient_difference_weight: NonNegative = 1.0,
        adversarial_weight: NonNegative = 0.05,
        loss: LossName = "non_saturating",
        **regularization: Any,
    ) -> None:
        super().__init__(spec, loss=loss, adversarial_weight=adversarial_weight, **regularization)
        source, size = require_source_spec(spec, type(self).__name__), spec.shape[-2:]
        if source.shape[-2:] != size or min(size) < MIN_COARSE_SIDE:
            raise UserError(
                "NextFrame needs sources as high and wide as its targets, and this dataset gives "
                f"{source.shape} and {spec.shape}; choose dataset=moving_mnist"
            )
        if error_weight == gradient_difference_weight == adversarial_weight == 0:
            raise UserError("NextFrame has no loss to minimize; set model.error_weight=1")
        self.p, self.alpha = p, alpha
        self.error_weight = error_weight
        self.gradient_difference_weight = gradient_difference_weight
        max_scales = (min(size) // MIN_COARSE_SIDE).bit_length()
        width = width[:max_scales]
        self.size_multiple = 2 ** (len(width) - 1)
        past, future = num_stacked_channels(source), num_stacked_channels(spec)
        self.generator = MultiScaleGenerator(past, future, width)
        if self.is_adversarial:
            sizes = [(size[0] >> k, size[1] >> k) for k in reversed(range(len(width)))]
            self.discriminator = MultiScaleDiscriminator(past + future, width, sizes)
            self.apply_spectral_norm_if_enabled(self.discriminator)

    def target_like_generator_output(self, x: Tensor) -> list[Tensor]:
        return image_pyramid(x.flatten(1, -3), len(self.generator.nets))

    def reconstruction_losses(self, fake: list[Tensor], target: list[Tensor]) -> dict[str, Tensor]:
        losses = {}
        pairs = list(zip(target, fake, strict=True))
        # eq. 5: L_p = ‖Y − Ŷ‖_p^p
        if self.error_weight:
            errors = [(y - y_hat).abs().pow(self.p).mean() for y, y_hat in pairs]
            losses["error"] = self.error_weight * torch.stack(errors).mean()
        if self.gradient_difference_weight:
            errors = [gradient_difference_loss(y, y_hat, self.alpha) for y, y_hat in pairs]
            mean = torch.stack(errors).mean()
            losses["gradient_difference"] = self.gradient_difference_weight * mean
        return losses or {"error": fake[-1].new_zeros(())}

    @torch.no_grad()
    def translate(self, cond: Tensor, *, backward: bool = False) -> Tensor:
        """Return the frames (B, *shape) that follow those of each source (B, *source)."""
        frames = self.generator(cond)[-1].clamp(*self.spec.range)
        return frames.unflatten(1, self.spec.shape[:-2])


# eq. 6: L_gdl = Σ ||Y_{i,j} − Y_{i−1,j}| − |Ŷ_{i,j} − Ŷ_{i−1,j}||^α
#              + ||Y_{i,j−1} − Y_{i,j}| − |Ŷ_{i,j−1} − Ŷ_{i,j}||^α
def gradient_difference_loss(y: Tensor, y_hat: Tensor, alpha: int = 1) -> Tensor:
    """Return the gradient difference loss of images (B, C, H, W), a mean for each direction."""
    vertical, horizontal = (
        (y.diff(dim=d).abs() - y_hat.diff(dim=d).abs()).abs().pow(alpha).mean() for d in (-2, -1)
    )
    return vertical + horizontal


class MultiScaleGenerator(nn.Module):
    """Past frames (B, …, H, W) to the next frames at every scale, the coarsest first.

    The result is a list of (B, outputs, H/2^k, W/2^k). The paper's final tanh is left out: on dark
    frames it saturates before training progresses. Weights are drawn as in He et al. 2015.
    """

    def __init__(self, past: int, outputs: int, width: tuple[int, ...]) -> None:
        super().__init__()
        self.nets = nn.ModuleList()
        for k, (w, (multiples, kernels)) in enumerate(zip(width, GENERATORS, strict=False)):
            layers: list[nn.Module] = []
            widths = [past + (outputs if k else 0), *(w * m for m in multiples), outputs]
            for (i, o), kernel in zip(pairwise(widths), kernels, strict=True):
                layers += [nn.Conv2d(i, o, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
            self.nets.append(nn.Sequential(*layers[:-1]))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                assert m.bias is not None
                nn.init.zeros_(m.bias)

    # eq. 4: Ŷ_k = u_k(Ŷ_{k−1}) + G'_k(X_k, u_k(Ŷ_{k−1}))
    def forward(self, cond: Tensor) -> list[Tensor]:
        outputs: list[Tensor] = []
        past = image_pyramid(cond.flatten(1, -3), len(self.nets))
        for net, x in zip(self.nets, past, strict=True):
            if outputs:
                u = F.interpolate(outputs[-1], size=x.shape[-2:], mode="bilinear")
                outputs.append(u + net(torch.cat([x, u], 1)))
            else:
                outputs.append(net(x))
        return outputs


class MultiScaleDiscriminator(nn.Module):
    """D_k: past frames and the next at every scale to a logit for each scale (B, scales)."""

    def __init__(
        self, in_channels: int, width: tuple[int, ...], sizes: list[tuple[int, int]]
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList()
        for w, config, size in zip(width, DISCRIMINATORS, sizes, strict=False):
            multiples, kernels, dense_multiples = config
            layers: list[nn.Module] = []
            widths = [in_channels, *(max(1, int(w * m)) for m in multiples)]
            for (i, o), kernel in zip(pairwise(widths), kernels, strict=True):
                layers += [nn.Conv2d(i, o, kernel), nn.LeakyReLU(0.2, inplace=True)]
            lost = sum(kernel - 1 for kernel in kernels)  # pixels a side, without padding
            pooled = (min(MAX_POOLED_SIDE, size[0] - lost), min(MAX_POOLED_SIDE, size[1] - lost))
            layers += [nn.AdaptiveMaxPool2d(pooled), nn.Flatten()]
            units = [widths[-1] * pooled[0] * pooled[1], *(w * m for m in dense_multiples)]
            for i, o in pairwise(units):
                layers += [nn.Linear(i, o), nn.LeakyReLU(0.2, inplace=True)]
            self.nets.append(nn.Sequential(*layers, nn.Linear(units[-1], 1)))

    def forward(self, cond: Tensor, frames: list[Tensor]) -> Tensor:
        past = image_pyramid(cond.flatten(1, -3), len(self.nets))
        scales = zip(self.nets, past, frames, strict=True)
        return torch.cat([net(torch.cat([x, y], 1)) for net, x, y in scales], 1)


def image_pyramid(x: Tensor, num_scales: int) -> list[Tensor]:
    """Return images (B, C, H, W) at each scale, the coarsest first and the original last."""
    h, w = x.shape[-2:]
    return [
        F.adaptive_avg_pool2d(x, (h >> k, w >> k)) if k else x for k in reversed(range(num_scales))
    ]


def num_stacked_channels(spec: DataSpec) -> int:
    """Return the number of maps (H, W) of an item: for a video, frames times channels."""
    return spec.dim // (spec.shape[-2] * spec.shape[-1])
