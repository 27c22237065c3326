"""The discriminator: a feature network, its heads, and class conditioning."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genlab.nn.minibatch_stddev import MinibatchStddev

Condition = Literal["concat", "projection", "auxiliary"]


class Discriminator(nn.Module):
    """D(x) = head(φ(x)): samples (B, *shape) and their classes (B,) to logits (B,).

    There are three ways to use the class. `concat` joins it to the input (Mirza & Osindero 2014,
    https://arxiv.org/abs/1411.1784). `projection` adds ⟨v_y, φ(x)⟩ to the logit (Miyato & Koyama
    2018, https://arxiv.org/abs/1802.05637, eq. 3). `auxiliary` leaves the logit unconditional and
    predicts the class beside it (Odena et al. 2017, https://arxiv.org/abs/1610.09585).

    Args:
        features: the network φ, from samples (joined with the class, if there is a `join`) to
            features (B, *shape).
        shape: of the features of one sample: a vector (F,) or feature maps (F, h, w).
        join: combines a batch (B, …) and its classes (B,) into the input of φ; None for x only.
        num_classes: 0 for an unconditional D.
        minibatch_stddev: let the last layer see how much the features vary within the batch
            (Karras et al. 2018, section 3).
        bias: give the logit a constant term.
    """

    recognition: nn.Module  # InfoGAN's Q, a further head

    def __init__(
        self,
        features: nn.Module,
        shape: tuple[int, ...],
        *,
        join: nn.Module | None = None,
        num_classes: int = 0,
        condition: Condition = "concat",
        minibatch_stddev: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        dim = math.prod(shape)
        self.join = join
        self.features = features
        self.minibatch_stddev = MinibatchStddev() if minibatch_stddev else None
        # the minibatch standard deviation is one more feature map
        head_dim = dim + dim // shape[0] if minibatch_stddev else dim
        self.head: nn.Module = nn.Linear(head_dim, 1, bias=bias)
        self.embedding: nn.Embedding | None = None
        self.class_head: nn.Module | None = None
        if num_classes and condition == "projection":
            self.embedding = nn.Embedding(num_classes, dim)
        if num_classes and condition == "auxiliary":
            self.class_head = nn.Linear(dim, num_classes)

    def extract_features(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return φ(x) (B, *shape)."""
        return self.features(x if self.join is None else self.join(x, y))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the logits (B,) of samples x (B, …) of classes y (B,)."""
        return self.logits(self.extract_features(x, y), y)

    def logits(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the logits (B,) of features h (B, *shape)."""
        head_input = h if self.minibatch_stddev is None else self.minibatch_stddev(h)
        logits = self.head(head_input.flatten(1)).squeeze(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(y) * h.flatten(1)).sum(1)
        return logits

    def class_logits(self, h: Tensor) -> Tensor:
        """Return the auxiliary classifier's logits (B, num_classes) of features h (B, *shape)."""
        assert self.class_head is not None
        return self.class_head(h.flatten(1))


class ClassMap(nn.Module):
    """Append a learned map of the class y (B,) to images (B, C, H, W) as one more channel."""

    def __init__(self, num_classes: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, math.prod(size))
        self.size = size

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, self.embedding(y).view(-1, 1, *self.size)], 1)


class OneHotConcat(nn.Module):
    """Flatten samples (B, …) of D values and append the one-hot class: (B, D + num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), one_hot(y, self.num_classes).to(x)], 1)
