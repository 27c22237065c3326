"""DCGAN: Radford, Metz & Chintala 2016, https://arxiv.org/abs/1511.06434."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.game import Game, Noise, ToRange
from genlab.models.gan.losses import Name
from genlab.spec import NonNegative, Positive, Spec


class DCGAN(Game):
    """Two all-convolutional nets on square images whose side is a power of two of at least 16.

    G projects z to width·2^(k−1) maps of 4×4 and doubles the side k = log2(side) − 2 times by fractionally strided
    convolutions, each halving the maps; D is its mirror. Batch normalisation is everywhere but in G's output and D's
    input; ReLU in G, leaky ReLU in D; weights from N(0, 0.02²). Kernels are 4×4, which stride 2 covers evenly.

    Args:
        width: maps at half the image's side; 128 is the paper's (1024 at 4×4 for 64×64 images).
        r1: γ of the gradient penalty γ/2 E|∇D(x)|² on data (Mescheder et al. 2018).

    Raises:
        UserError: the items are no square images of such a side, or `conditional` and the data has no labels.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        latent: Positive = 100,
        width: Positive = 128,
        noise: Noise = "uniform",
        loss: Name = "non_saturating",
        r1: NonNegative = 0.0,
        conditional: bool = False,
    ) -> None:
        side = spec.shape[-1]
        if spec.kind != "image" or spec.shape[-2] != side or side < 16 or side & (side - 1):
            mend = "choose a dataset of images, such as dataset=digits"
            if spec.kind == "image":
                mend = f"set dataset.size={max(16, 1 << (max(spec.shape[-2:]) - 1).bit_length())}"
            raise UserError("DCGAN needs square images whose side is a power of two of at least 16, "
                            f"and this dataset gives {spec.shape}; {mend}")  # fmt: skip
        super().__init__(spec, latent=latent, noise=noise, loss=loss, r1=r1, conditional=conditional)
        maps = [width << i for i in range(side.bit_length() - 3)]  # at sides S/2, S/4, …, 4
        self.generator = Generator(spec, self.code, maps[::-1])
        self.discriminator = Discriminator(spec, maps, spec.classes * conditional)
        self.apply(initialise)


class Generator(nn.Module):
    """G: codes (B, code) to images (B, C, S, S) in the data's range."""

    def __init__(self, spec: Spec, code: int, maps: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ConvTranspose2d(code, maps[0], 4, bias=False), *norm_relu(maps[0])]  # 4×4
        for i, o in pairwise(maps):
            layers += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False), *norm_relu(o)]
        layers += [nn.ConvTranspose2d(maps[-1], spec.shape[0], 4, stride=2, padding=1), ToRange(*spec.range)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """D: images (B, C, S, S), with a map of their class where it has any, to logits (B,)."""

    def __init__(self, spec: Spec, maps: list[int], classes: int) -> None:
        super().__init__()
        channels, side, _ = spec.shape
        self.label = nn.Embedding(classes, side * side) if classes else None
        layers: list[nn.Module] = [
            nn.Conv2d(channels + bool(classes), maps[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)
        ]  # fmt: skip
        for i, o in pairwise(maps):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(o)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(maps[-1], 1, 4))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.label is not None:
            x = torch.cat([x, self.label(y).view(-1, 1, *x.shape[2:])], 1)  # (B, C + 1, S, S)
        return self.layers(x).flatten()  # (B,)


def norm_relu(maps: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(maps), nn.ReLU(inplace=True)


def initialise(module: nn.Module) -> None:
    """Draw weights as the paper does (section 4): N(0, 0.02²); scales of batch normalisation around 1."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
