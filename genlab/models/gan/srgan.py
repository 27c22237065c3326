"""SRResNet and SRGAN: Ledig et al. 2017, https://arxiv.org/abs/1609.04802."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.losses import Name
from genlab.models.gan.translation import Translation, paired
from genlab.nn.srresnet import SRResNet
from genlab.spec import NonNegative, Positive, Spec


class SRGAN(Translation):
    """A residual network that enlarges images, first by their pixels alone (SRResNet), then with an adversary (SRGAN).

    The factor is that of the data: targets over sources. Sources may be of any size when it is asked.

    Args:
        width: maps of the generator; `discriminator_width` of the discriminator's first layer.
        blocks, norm, kernel, stages, bicubic: of the generator, see `SRResNet`.
        error: of the pixels: the paper's square, or the absolute difference.
        content: maps images in [0, 1] to the features whose squared error stands beside the adversary in place of the
            pixels'; None: the pixels' error stays (the paper's SRGAN-MSE).
        adversarial: weight of the adversary; 0: none, so that the model is SRResNet.
        restraints: what holds the discriminator smooth, see `Restrained`.

    Raises:
        UserError: the data has no sources, or its targets are no whole multiple of them, of as many channels.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: Positive = 64,
        blocks: Positive = 16,
        norm: bool = True,
        kernel: Literal[3, 5, 7, 9] = 9,
        stages: bool = True,
        bicubic: bool = False,
        discriminator_width: Positive = 64,
        error: Literal["squared", "absolute"] = "squared",
        content: Callable[[Tensor], Tensor] | None = None,
        adversarial: NonNegative = 1e-3,
        loss: Name = "non_saturating",
        **restraints,
    ) -> None:
        super().__init__(spec, loss=loss, adversarial=adversarial, **restraints)
        self.factor = enlargement(spec, type(self).__name__)
        self.content, self.squared = content, error == "squared"
        channels = spec.shape[0]
        self.generator = SRResNet(
            spec.source.shape[0], channels, self.factor,
            width=width, blocks=blocks, norm=norm, kernel=kernel, stages=stages, bicubic=bicubic,
        )  # fmt: skip
        if adversarial:
            self.discriminator = self.restrained(Discriminator(spec.shape, discriminator_width))

    # eq. 4: l_MSE = 1/(r²WH) Σ (I_HR − G(I_LR))²
    def errors(self, made: Tensor, truth: Tensor) -> dict[str, Tensor]:
        if self.squared:
            return {"squared_error": (truth - made).square().mean()}
        return {"absolute_error": (truth - made).abs().mean()}

    # eqs. 3 and 5: l_SR = l_X + 10⁻³ l_Gen, with l_VGG/i,j = 1/(WH) Σ (φ_ij(I_HR) − φ_ij(G(I_LR)))²
    def game_errors(self, made: Tensor, truth: Tensor) -> dict[str, Tensor]:
        if self.content is None:
            return self.errors(made, truth)
        low, high = self.spec.range
        phi, phi_made = (self.content((x - low) / (high - low)) for x in (truth, made))
        return {"content": (phi - phi_made).square().mean()}


class Discriminator(nn.Module):
    """D: images (B, C, H, W) of one size to logits (B,): eight convolutions, four halvings, two dense layers (figure 4)."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        channels, h, w = shape
        maps = [
            width << (i // 2) for i in range(8)
        ]  # 64 64 128 128 256 256 512 512, each second layer halving
        layers: list[nn.Module] = [
            nn.Conv2d(channels, maps[0], 3, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for n, (i, o) in enumerate(pairwise(maps), 1):
            layers += [
                nn.Conv2d(i, o, 3, stride=1 + n % 2, padding=1, bias=False),
                nn.BatchNorm2d(o),
            ]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        values = maps[-1] * -(-h // 16) * -(-w // 16)  # halvings round up
        dense = [
            nn.Linear(values, 16 * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(16 * width, 1),
        ]
        self.layers = nn.Sequential(*layers, nn.Flatten(), *dense)

    def forward(self, cond: Tensor, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)  # (B,): it does not look at the source


def enlargement(spec: Spec, name: str) -> int:
    """Return how many times as high and wide as their sources the targets are.

    Raises:
        UserError: not a whole number of times, at least 2, in images of as many channels.
    """
    paired(spec, name)
    source, target = spec.source.shape, spec.shape
    fits = len(source) == len(target) == 3 and source[0] == target[0]
    factor = target[-1] // source[-1]
    if not fits or factor < 2 or target[1:] != (factor * source[1], factor * source[2]):
        raise UserError(f"{name} needs images that are whole multiples of their sources' size, and this dataset gives "
                        f"{source} and {target}; choose dataset=superres")  # fmt: skip
    return factor
