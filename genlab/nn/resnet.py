"""Residual convolutional networks that keep an image's size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))) (B, C, H, W), with weight normalization.

    The pre-activation block of He et al. 2016.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            weight_norm(nn.Conv2d(channels, channels, 3, padding=1)),
            nn.ReLU(),
            weight_norm(nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResidualNet(nn.Sequential):
    """An image (B, inputs, H, W) to (B, outputs, H, W), for any H and W.

    It does not use batch statistics, so samples do not depend on each other.
    """

    def __init__(self, inputs: int, channels: int, num_blocks: int, outputs: int) -> None:
        super().__init__(
            weight_norm(nn.Conv2d(inputs, channels, 3, padding=1)),
            *(ResidualBlock(channels) for _ in range(num_blocks)),
            nn.ReLU(),
            nn.Conv2d(channels, outputs, 1),
        )
