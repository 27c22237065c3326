"""D: what a network sees in an item, and the heads that read it: real or not, given the class, or the class itself."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genlab.nn.minibatch_stddev import MinibatchDeviation

Condition = Literal["concat", "projection", "auxiliary"]


class Critic(nn.Module):
    """D(x) = head(φ(x)), items (B, *shape) and their classes (B,) to logits (B,).

    A class may enter in three ways: `concat` joins it to the input (Mirza & Osindero 2014,
    https://arxiv.org/abs/1411.1784), `projection` adds ⟨v_y, φ(x)⟩ to the logit (Miyato & Koyama 2018,
    https://arxiv.org/abs/1802.05637, eq. 3), `auxiliary` leaves the logit alone and names the class beside it (Odena
    et al. 2017, https://arxiv.org/abs/1610.09585).

    Args:
        features: φ: what it is given (B, *seen) to (B, *shape), a vector (F,) or maps (F, h, w).
        classes: 0: D knows no classes.
        deviation: show the last layer how much the features of a batch differ (Karras et al. 2018, section 3).
        bias: whether the logit has a constant.
    """

    def __init__(
        self,
        features: nn.Module,
        shape: tuple[int, ...],
        *,
        join: nn.Module | None = None,
        classes: int = 0,
        condition: Condition = "concat",
        deviation: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        dim = math.prod(shape)
        self.join = join
        self.features = features
        self.deviation = MinibatchDeviation() if deviation else None
        self.head = nn.Linear(
            dim + deviation * dim // shape[0], 1, bias=bias
        )  # deviation: one more map
        self.embedding = (
            nn.Embedding(classes, dim) if classes and condition == "projection" else None
        )
        self.class_head = nn.Linear(dim, classes) if classes and condition == "auxiliary" else None

    def seen(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return φ(x) (B, *shape)."""
        return self.features(x if self.join is None else self.join(x, y))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.judged(self.seen(x, y), y)

    def judged(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the logits (B,) of features h (B, *shape)."""
        logits = self.head((h if self.deviation is None else self.deviation(h)).flatten(1)).squeeze(
            1
        )
        if self.embedding is not None:
            logits = logits + (self.embedding(y) * h.flatten(1)).sum(1)
        return logits

    def named(self, h: Tensor) -> Tensor:
        """Return the classes' logits (B, classes) of features h (B, *shape), of an auxiliary classifier."""
        return self.class_head(h.flatten(1))


class ClassMap(nn.Module):
    """An image (B, C, H, W) and its class (B,) to (B, C + 1, H, W): a learned map of the class is one more channel."""

    def __init__(self, classes: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, math.prod(size))
        self.size = size

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, self.embedding(y).view(-1, 1, *self.size)], 1)


class OneHot(nn.Module):
    """An item (B, …) of D values and its class (B,) to a vector (B, D + classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), one_hot(y, self.classes).to(x)], 1)
