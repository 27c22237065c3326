"""What the data tells a model (`Spec`), what a model is fed (`Batch`), and the number ranges that options share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Interval

from genlab.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

# Ranges of options, written once: `build` checks every option of a recipe against its constructor's hints.
Count = Annotated[int, Interval(ge=0, le=2**63 - 1)]  # 0, 1, 2, … as far as PyTorch counts
Positive = Annotated[
    int, Interval(gt=0, le=10**9)
]  # 1, 2, 3, …; more is a slip, and would be counted to for days
PositiveFloat = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]  # a probability or a share
Decay = Annotated[float, Interval(ge=0, lt=1)]  # the weight of the past in a running mean


@dataclass(frozen=True)
class Spec:
    """What the dataset tells a model, so that no recipe repeats it.

    `shape` is one item's: (C, H, W) of an image, (D,) of a point, (T,) of a token sequence. `levels` is the number of
    values that a channel can take (256 for a byte, 2 for a binary image, 0 for real numbers and tokens); with `dequantised` each
    value was spread evenly over its bin, so that the data has a density. `range` is the interval of an image's values.
    `vocab` is the number of different tokens, and `symbols` the character that each stands for; "" with tokens: bytes.
    `source` is the Spec of what an item is made from (`Batch.cond`), and `task` the name of that translation.
    """

    shape: tuple[Positive, ...]
    kind: str = "image"  # image | points | tokens | video
    classes: Count = 0  # 0: no labels
    levels: Count = 256
    vocab: Count = 0
    symbols: str = ""
    range: tuple[float, float] = (-1.0, 1.0)
    dequantised: bool = False
    source: Spec | None = None
    task: str = ""  # colorize | superres | denoise | inpaint | forecast | …

    @property
    def dim(self) -> int:
        """The number of values in one item."""
        return math.prod(self.shape)

    @property
    def discrete(self) -> bool:
        """Whether the data has probabilities (a mass function) rather than a density."""
        return self.kind == "tokens" or (self.levels > 0 and not self.dequantised)

    def bits_per_dim(self, log_prob: float) -> float | None:
        """Return bits/dim of a mean log-likelihood in nats a sample, or None for data that was never quantised.

        A density of dequantised data becomes the probability of its bin: log P = log p + D log(bin width)
        (Theis et al. 2016, https://arxiv.org/abs/1511.01844, section 3.1).
        """
        if not self.levels:
            return None
        low, high = self.range
        log_bin = self.dim * math.log((high - low) / self.levels) if self.dequantised else 0.0
        return -(log_prob + log_bin) / (self.dim * math.log(2))

    def to_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises:
            UserError: a character that the data does not have.
        """
        if not self.symbols:
            return list(text.encode())
        number = {symbol: i for i, symbol in enumerate(self.symbols)}
        if unknown := "".join(sorted(set(text) - set(number))):
            raise UserError(
                f"the data has no {unknown!r}; its {self.vocab} characters are {self.symbols!r}"
            )
        return [number[symbol] for symbol in text]

    def to_text(self, tokens: Iterable[int]) -> str:
        """Return the text that tokens stand for; bytes that are no UTF-8 show as the mark of replacement."""
        if not self.symbols:
            return bytes(tokens).decode(errors="replace")
        return "".join(self.symbols[i] for i in tokens)

    def to_json(self) -> dict:
        """Return plain values, from which `Spec.from_json` rebuilds the same Spec."""
        source = self.source and self.source.to_json()
        return {
            **self.__dict__,
            "shape": list(self.shape),
            "range": list(self.range),
            "source": source,
        }

    @classmethod
    def from_json(cls, values: dict) -> Spec:
        """Return the Spec that `to_json` made the values of.

        Raises:
            ValueError: they are no Spec's.
        """
        from pydantic import TypeAdapter

        spec = TypeAdapter(cls).validate_python(values)
        low, high = spec.range
        if not low < high or not spec.shape or spec.dim >= 2**31:
            raise ValueError(f"shape {list(spec.shape)}, range {list(spec.range)}")
        return spec


@dataclass
class Batch:
    """One batch: `x` (B, *shape), labels `y` (B,) int64, and `cond` (a source image, past frames, a caption)."""

    x: Tensor
    y: Tensor | None = None
    cond: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        move = lambda t: None if t is None else t.to(device, non_blocking=True)  # noqa: E731
        return Batch(self.x.to(device, non_blocking=True), move(self.y), move(self.cond))
