"""The residual image-to-image network of CycleGAN, after Johnson et al. 2016.

Johnson et al. 2016, https://arxiv.org/abs/1603.08155; Zhu et al. 2017,
https://arxiv.org/abs/1703.10593, appendix 7.2: c7s1-64, d128, d256, R256 × num_blocks, u128, u64,
c7s1-outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from genlab.nn.padding import apply_padded


class ResidualGenerator(nn.Module):
    """Images (B, inputs, H, W) to (B, outputs, H, W), with residual blocks at a quarter size.

    Sides are at least 8; those not divisible by 4 are padded and cropped back. Edges are padded by
    reflection, which avoids border artifacts.

    Args:
        width: maps at the full size; the blocks have 4·width.
    """

    size_multiple = 4

    def __init__(self, inputs: int, outputs: int, *, width: int = 64, num_blocks: int = 9) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(inputs, width, 7, bias=False),
            *instance_norm_relu(width),
        ]
        for w in (width, 2 * width):
            layers.append(nn.Conv2d(w, 2 * w, 3, stride=2, padding=1, bias=False))
            layers += instance_norm_relu(2 * w)
        layers += [ReflectionResidualBlock(4 * width) for _ in range(num_blocks)]
        for w in (4 * width, 2 * width):
            layers.append(
                nn.ConvTranspose2d(w, w // 2, 3, stride=2, padding=1, output_padding=1, bias=False)
            )
            layers += instance_norm_relu(w // 2)
        self.layers = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, outputs, 7))

    def forward(self, x: Tensor) -> Tensor:
        return apply_padded(self.layers, x, self.size_multiple)


class ReflectionResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) (B, C, H, W), with reflection padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            *instance_norm_relu(channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def instance_norm_relu(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)]
