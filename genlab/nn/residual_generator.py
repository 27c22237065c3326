"""The residual network from image to image of Johnson et al. 2016, https://arxiv.org/abs/1603.08155, as CycleGAN has it.

Zhu et al. 2017, https://arxiv.org/abs/1703.10593, appendix 7.2: c7s1-64, d128, d256, R256 × blocks, u128, u64, c7s1-outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from genlab.nn.padding import padded


class ResidualGenerator(nn.Module):
    """Images (B, inputs, H, W) to (B, outputs, H, W): two halvings, `blocks` residual blocks, two doublings.

    Sides that 4 does not divide are padded and cropped back; they are 8 at least. Edges are reflected, so that there is no frame.

    Args:
        width: maps at the full size; 4·width are the blocks'.
    """

    multiple = 4

    def __init__(self, inputs: int, outputs: int, *, width: int = 64, blocks: int = 9) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(inputs, width, 7, bias=False),
            *normed(width),
        ]
        for w in (width, 2 * width):
            layers += [nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False), *normed(2 * w)]
        layers += [ReflectedBlock(4 * width) for _ in range(blocks)]
        for w in (4 * width, 2 * width):
            up = nn.ConvTranspose2d(w, w // 2, 3, stride=2, padding=1, output_padding=1, bias=False)
            layers += [up, *normed(w // 2)]
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, outputs, 7))

    def forward(self, x: Tensor) -> Tensor:
        return padded(self.layers, x, self.multiple)


class ReflectedBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), *normed(channels),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), nn.InstanceNorm2d(channels, affine=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def normed(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)
