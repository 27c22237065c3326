"""DCGAN: Radford, Metz & Chintala 2016, https://arxiv.org/abs/1511.06434."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from genlab.errors import UserError
from genlab.models.gan.base import Game, Noise, ToRange
from genlab.spec import Positive, Spec


class DCGAN(Game):
    """Two all-convolutional nets on square images whose side is a power of two of at least 16.

    G projects z to width·2^(k−1) maps of 4×4 and doubles the side k = log2(side) − 2 times by fractionally strided
    convolutions, each halving the maps; D is its mirror. Batch normalisation is everywhere but in G's output and D's
    input; ReLU in G, leaky ReLU in D; weights from N(0, 0.02²). Kernels are 4×4, which stride 2 covers evenly.

    Args:
        width: maps at half the image's side; 128 is the paper's (1024 at 4×4 for 64×64 images).

    Raises:
        UserError: the items are no square images of such a side, or `conditional` and the data has no labels.
    """

    def __init__(
        self, spec: Spec, *, width: Positive = 128, noise: Noise = "uniform", **options
    ) -> None:
        side = spec.shape[-1]
        if spec.kind != "image" or spec.shape[-2] != side or side < 16 or side & (side - 1):
            mend = "choose a dataset of images, such as dataset=digits"
            if spec.kind == "image":
                mend = f"set dataset.size={max(16, 1 << (max(spec.shape[-2:]) - 1).bit_length())}"
            raise UserError("DCGAN needs square images whose side is a power of two of at least 16, "
                            f"and this dataset gives {spec.shape}; {mend}")  # fmt: skip
        super().__init__(spec, noise=noise, **options)
        maps = [width << i for i in range(side.bit_length() - 3)]  # at sides S/2, S/4, …, 4
        self.generator = Generator(spec, self.code, maps[::-1]).apply(initialise)
        self.discriminator = self.critic(
            Features(self.seen[0], maps), (maps[-1], 4, 4), initialise=initialise
        )


class Generator(nn.Module):
    """G: codes (B, code) to images (B, C, S, S) in the data's range."""

    def __init__(self, spec: Spec, code: int, maps: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(code, maps[0], 4, bias=False),
            *norm_relu(maps[0]),
        ]  # 4×4
        for i, o in pairwise(maps):
            layers += [nn.ConvTranspose2d(i, o, 4, stride=2, padding=1, bias=False), *norm_relu(o)]
        layers += [
            nn.ConvTranspose2d(maps[-1], spec.shape[0], 4, stride=2, padding=1),
            ToRange(*spec.range),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Features(nn.Sequential):
    """D without its last layer: images (B, C, S, S) to maps (B, maps[-1], 4, 4)."""

    def __init__(self, channels: int, maps: list[int]) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, maps[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for i, o in pairwise(maps):
            layers += [nn.Conv2d(i, o, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(o)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers)


def norm_relu(maps: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(maps), nn.ReLU(inplace=True)


def initialise(module: nn.Module) -> None:
    """Draw weights as the paper does (section 4): N(0, 0.02²); scales of batch normalisation around 1."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
