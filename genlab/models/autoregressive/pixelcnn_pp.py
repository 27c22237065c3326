"""PixelCNN++: Salimans, Karpathy, Chen & Kingma 2017, https://arxiv.org/abs/1701.05517."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.models.autoregressive.base import Autoregressive
from genlab.models.autoregressive.likelihoods import make
from genlab.spec import Fraction, Positive, Spec

State = tuple[
    Tensor, Tensor
]  # what is known at each pixel (B, F, H, W): of the rows above it, and of all before it


class PixelCNNpp(Autoregressive):
    """A PixelCNN that halves the picture and doubles it again, with shortcuts, and draws whole pixels (figure 2).

    The authors' code normalises its weights with a data-dependent start; plain convolutions take their place.

    Args:
        channels: features of each stream.
        blocks: residual blocks at each resolution on the way down; the way up has as many, and one for each halving.
        scales: resolutions, the picture's own included.
        components: logistics in the mixture.
        dropout: share of the features left out within each block in training.
        conditional: learn p(x | y), the class adding a bias in each block.

    Raises:
        UserError: the data is not made of discrete levels, or has no classes for a conditional model.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        channels: Positive = 160,
        blocks: Positive = 5,
        scales: Positive = 3,
        components: Positive = 10,
        dropout: Fraction = 0.5,
        conditional: bool = False,
    ) -> None:
        super().__init__(
            spec, make("mixture", spec, components=components), conditional=conditional
        )
        c = spec.shape[0] + 1  # a plane of ones tells the picture from the padding around it
        self.above = nn.Conv2d(c, channels, (2, 3))
        self.above_row, self.left = nn.Conv2d(c, channels, (1, 3)), nn.Conv2d(c, channels, (2, 1))
        how = {"dropout": dropout, "classes": spec.classes if conditional else 0}
        pairs = lambda n, sides: nn.ModuleList(Pair(channels, sides=sides, **how) for _ in range(n))  # noqa: E731
        self.down = nn.ModuleList(pairs(blocks, 0) for _ in range(scales))
        self.up = nn.ModuleList(pairs(blocks + (i > 0), 1) for i in range(scales))
        self.halves = nn.ModuleList(Halve(channels) for _ in range(scales - 1))
        self.doubles = nn.ModuleList(Double(channels) for _ in range(scales - 1))
        self.head = nn.Conv2d(channels, self.likelihood.params, 1)

    def enter(self, x: Tensor) -> State:
        """Return the first features of x (B, C, H, W): they know the rows above a pixel, and what is left of it too."""
        x = F.pad(self.scaled(x), (0, 0, 0, 0, 0, 1), value=1.0)  # (B, C + 1, H, W)
        u = self.above(F.pad(x, (1, 1, 2, -1)))  # rows i − 2 and i − 1
        row = self.above_row(F.pad(x, (1, 1, 1, -1)))  # row i − 1
        return u, row + self.left(F.pad(x, (1, -1, 1, 0)))  # rows i − 1 and i of column j − 1

    def outputs(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Return the mixture's params (B, P, H, W) of x (B, C, H, W)."""
        state = self.enter(x)
        passed = [state]
        for i, pairs in enumerate(self.down):
            if i:
                state = self.halves[i - 1](state)
                passed.append(state)
            for pair in pairs:
                state = pair(state, y)
                passed.append(state)
        state = passed.pop()
        for i, pairs in enumerate(self.up):
            if i:
                state = self.doubles[i - 1](state, passed[-1][0].shape[2:])
            for pair in pairs:
                state = pair(state, y, passed.pop())
        return self.head(F.elu(state[1]))


class Pair(nn.Module):
    """One block of each stream; the second reads the first, and with `sides` both read a shortcut of the same size."""

    def __init__(self, channels: int, *, sides: int, dropout: float, classes: int) -> None:
        super().__init__()
        how = {"dropout": dropout, "classes": classes}
        self.above = GatedBlock(channels, side=sides * channels, row=False, **how)
        self.before = GatedBlock(channels, side=(1 + sides) * channels, row=True, **how)

    def forward(self, state: State, y: Tensor | None, passed: State | None = None) -> State:
        u, v = state
        u = self.above(u, y, passed and passed[0])
        return u, self.before(v, y, torch.cat([u, passed[1]], 1) if passed else u)


class GatedBlock(nn.Module):
    """x + a ⊙ σ(b), of two causal convolutions; `side` features of a shortcut (B, side, H, W) come in between."""

    def __init__(
        self, channels: int, *, side: int, row: bool, dropout: float, classes: int
    ) -> None:
        super().__init__()
        self.first = causal(2 * channels, channels, row=row)
        self.side = nn.Conv2d(2 * side, channels, 1) if side else None
        self.dropout = nn.Dropout(dropout)
        self.second = causal(2 * channels, 2 * channels, row=row)
        self.classes = nn.Embedding(classes, 2 * channels) if classes else None
        with torch.no_grad():
            self.second[1].weight.mul_(0.1)  # a block starts near the identity

    def forward(self, x: Tensor, y: Tensor | None, side: Tensor | None) -> Tensor:
        h = self.first(both(x))
        if side is not None:
            h = h + self.side(both(side))
        h = self.second(self.dropout(both(h)))
        if self.classes is not None:
            h = h + self.classes(y)[:, :, None, None]
        a, b = h.chunk(2, 1)
        return x + a * b.sigmoid()


class Halve(nn.Module):
    """Both streams at half the resolution: at (i, j) they know what they knew at (2i, 2j)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.above = causal(channels, channels, row=False, stride=2)
        self.before = causal(channels, channels, row=True, stride=2)

    def forward(self, state: State) -> State:
        return self.above(state[0]), self.before(state[1])


class Double(nn.Module):
    """Both streams at twice the resolution: at (i, j) they know what they knew at (⌊i/2⌋, ⌊j/2⌋)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.above = nn.ConvTranspose2d(channels, channels, (2, 3), stride=2)
        self.before = nn.ConvTranspose2d(channels, channels, (2, 2), stride=2)

    def forward(self, state: State, size: tuple[int, int]) -> State:
        h, w = size  # an odd side was rounded up when it was halved
        return self.above(state[0])[:, :, :h, 1 : w + 1], self.before(state[1])[:, :, :h, :w]


def causal(inputs: int, outputs: int, *, row: bool, stride: int = 1) -> nn.Sequential:
    """Return a convolution of a pixel with the row above it and its neighbours: both of them, or with `row` the left one."""
    pad = nn.ZeroPad2d((1, 0, 1, 0) if row else (1, 1, 1, 0))
    return nn.Sequential(pad, nn.Conv2d(inputs, outputs, (2, 2 if row else 3), stride=stride))


def both(x: Tensor) -> Tensor:
    """Return elu(x) and elu(−x) (B, 2F, H, W)."""
    return F.elu(torch.cat([x, -x], 1))
