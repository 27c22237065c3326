"""The contract of data and models: `DataSpec`, `Batch`, and the number ranges of options."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Interval

from genlab.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor

# Ranges of options. Each option of a recipe is checked against the type hint of its constructor.
Count = Annotated[int, Interval(ge=0, le=2**63 - 1)]  # 0, 1, 2, … as far as PyTorch counts
Positive = Annotated[int, Interval(gt=0, le=10**9)]  # 1, 2, 3, …; more is a typing error
PositiveFloat = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]  # a fraction or a probability
Decay = Annotated[float, Interval(ge=0, lt=1)]  # the weight of the past in a running mean

DEQUANTIZATION_BITS = 16  # of the uniform noise that fills a level's bin
MAX_CLASSES_NAMED = 12  # classes that an error message lists


@dataclass(frozen=True)
class IsClass:
    """Marks a number that is a class: on the command line it may be given by its name.

    Attributes:
        option, value: if set, it is a class only where this other option has this value.
    """

    option: str = ""
    value: str = ""


ClassNumber = Annotated[Count, IsClass()]
# a class as it is typed: `dog`, `3`, `true`
ClassName = Annotated[bool | int | float | str, IsClass()]


@dataclass(frozen=True)
class DataSpec:
    """The facts about a dataset that a model needs, so that a recipe does not repeat them.

    Attributes:
        shape: of one item: (C, H, W) of an image, (D,) of a point, (T,) of a token sequence,
            (T, C, H, W) of a video, (steps, columns) of the future of a series.
        kind: image | points | tokens | video | table | series.
        num_classes: 0 without labels.
        class_names: the name of each class, in the order of their numbers; () without names.
        levels: number of values that a channel can take: 256 for a byte, 2 for a binary image, 0
            for real numbers and tokens.
        vocab: number of different tokens.
        symbols: the character of each token; "" with tokens: bytes.
        range: interval of an image's values.
        dequantized: whether each value got uniform noise that fills its bin, so that the data has a
            density.
        source: the DataSpec of an item's source (`Batch.cond`).
        task: name of the translation from source to item: colorize | superres | denoise | inpaint |
            forecast | …
        categories: for a table the number of categories of each column, 0 for a column of numbers.
            A categorical column contains the number of its category. () for other data.
        action_channels: of the frames of a video's source: the last channels, which are not colors
            but the action between a frame and the next one, the same value at each pixel.
        has_missing: whether items have missing values, which are NaN.
    """

    shape: tuple[Positive, ...]
    kind: str = "image"
    num_classes: Count = 0
    class_names: tuple[str, ...] = ()
    levels: Count = 256
    vocab: Count = 0
    symbols: str = ""
    range: tuple[float, float] = (-1.0, 1.0)
    dequantized: bool = False
    source: DataSpec | None = None
    task: str = ""
    categories: tuple[Count, ...] = ()
    action_channels: Count = 0
    has_missing: bool = False

    @property
    def dim(self) -> int:
        """The number of values in one item."""
        return math.prod(self.shape)

    @property
    def is_discrete(self) -> bool:
        """Whether the data has probabilities (a mass function) rather than a density."""
        return self.kind == "tokens" or (self.levels > 0 and not self.dequantized)

    def bits_per_dim(self, log_prob: float) -> float | None:
        """Return bits/dim of a mean log-likelihood in nats, or None for data without levels.

        A density of dequantized data becomes the probability of its bin:
        log P = log p + D log(bin width) (Theis et al. 2016, https://arxiv.org/abs/1511.01844,
        section 3.1).
        """
        if not self.levels:
            return None
        low, high = self.range
        log_bin = self.dim * math.log((high - low) / self.levels) if self.dequantized else 0.0
        return -(log_prob + log_bin) / (self.dim * math.log(2))

    def dequantized_levels(self, x: Tensor) -> Tensor:
        """Return the level k, float64 (…), of dequantized values x (…): that of x's bin.

        x = low + (high − low) (k + u)/levels, where u has `DEQUANTIZATION_BITS` bits. Half of its
        last bit is added, so that the rounding of x to float32 does not move u = 0 into the bin
        below.
        """
        low, high = self.range
        k = (x.detach().double() - low) * (self.levels / (high - low))
        return (k + 2.0 ** -(DEQUANTIZATION_BITS + 1)).floor().clamp(0, self.levels - 1)

    def to_bytes(self, x: Tensor) -> Tensor:
        """Return values x (…) in the range as bytes uint8 (…), as an image file stores them.

        It is the inverse of the preparation of gray levels: dequantized values become the level of
        their bin, so that they lose their noise. Other values are rounded to the nearest byte.
        """
        low, high = self.range
        if self.dequantized:
            unit = self.dequantized_levels(x) / max(1, self.levels - 1)
        else:
            unit = ((x.detach().float() - low) / (high - low)).clamp(0, 1)
        return (unit * 255).round().byte()

    def from_bytes(self, x: Tensor) -> Tensor:
        """Return bytes or other gray values x (…), 0 … 255, as values in the range, without noise.

        Dequantized data has the middle of each level's bin.
        """
        low, high = self.range
        unit = x / 255
        if self.dequantized:
            unit = (unit * (self.levels - 1) + 0.5) / self.levels
        return unit * (high - low) + low

    def is_same_as(self, other: DataSpec) -> bool:
        """Whether two specs describe the same data; runs of older versions lack class names."""
        if not self.class_names or not other.class_names:
            return replace(self, class_names=()) == replace(other, class_names=())
        return self == other

    def describe(self) -> str:
        """Return in words what a model of this data receives, for the summary of a run."""
        if self.kind == "tokens":
            return f"{self.dim:,} tokens per item, {self.vocab:,} different"
        if self.kind == "points":
            return f"{self.dim:,} real numbers per item"
        if self.kind == "table":
            num_categorical = sum(count > 0 for count in self.categories)
            numbers = self.dim - num_categorical
            return f"{numbers:,} columns of numbers and {num_categorical:,} of categories"
        if self.kind == "series":
            steps = f"{self.shape[0]:,} steps of {self.shape[1]:,} real numbers"
            if self.source is None:
                return steps
            return f"{steps}, predicted from the {self.source.shape[0] - self.shape[0]:,} before"
        *frames, channels, height, width = self.shape
        parts = [f"{frames[0]} frames of"] if frames else []
        colors = {1: "gray", 3: "color"}.get(channels, f"{channels}-channel")
        parts.append(f"{colors} {width}×{height}")
        low, high = self.range
        values = f"values in [{low:g}, {high:g}]"
        if self.levels == 2:
            values = f"binary, {values}"
        elif self.levels:
            joint = " dequantized to " if self.dequantized else ", "
            values = f"{self.levels} levels{joint}{values}"
        return f"{' '.join(parts)}, {values}"

    def class_name(self, number: int) -> str:
        """Return the name of a class; its number if the classes do not have names."""
        return self.class_names[number] if self.class_names else str(number)

    def class_number(self, name: ClassName, option: str = "label") -> int:
        """Return the number of a class that is given by its name or its number.

        Names that are numbers win: with the class folders 3 and 7, the class 7 has the number 1,
        and there is no class 1. Letter case matters only between names that are equal otherwise.

        Raises:
            UserError: the data does not have the class; names the option and the classes.
        """
        if not self.num_classes:
            raise UserError(f"{option}={name}: this data does not have classes")
        typed = unicodedata.normalize("NFC", str(name))
        if typed in self.class_names:
            return self.class_names.index(typed)
        folded = [known.casefold() for known in self.class_names]
        if folded.count(typed.casefold()) == 1:
            return folded.index(typed.casefold())
        if typed.isdecimal():
            values = [int(n) if n.isdecimal() else -1 for n in self.class_names]
            if values.count(int(typed)) == 1:  # 1 for the folder 01
                return values.index(int(typed))
            if max(values, default=-1) < 0 and int(typed) < self.num_classes:
                return int(typed)
        near = did_you_mean(typed, self.class_names)
        raise UserError(
            f"{option}={name}: no such class{near}; the classes are {self.format_class_list()}"
        )

    def format_class_list(self) -> str:
        """Return the names of the classes, or their numbers, for a message."""
        if not self.class_names:
            return f"0 to {self.num_classes - 1}"
        more = ", …" if self.num_classes > MAX_CLASSES_NAMED else ""
        return ", ".join(self.class_names[:MAX_CLASSES_NAMED]) + more

    def to_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises:
            UserError: the text has a character that the data does not have.
        """
        if not self.symbols:
            return list(text.encode())
        number = {symbol: i for i, symbol in enumerate(self.symbols)}
        if unknown := "".join(sorted(set(text) - set(number))):
            raise UserError(
                f"the data does not have {unknown!r}; its {self.vocab} characters are "
                f"{self.symbols!r}"
            )
        return [number[symbol] for symbol in text]

    def to_text(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become replacement characters."""
        if not self.symbols:
            return bytes(tokens).decode(errors="replace")
        return "".join(self.symbols[i] for i in tokens)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `DataSpec.from_json` rebuilds the same DataSpec."""
        return {
            **self.__dict__,
            "shape": list(self.shape),
            "class_names": list(self.class_names),
            "range": list(self.range),
            "source": self.source and self.source.to_json(),
            "categories": list(self.categories),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DataSpec:
        """Return the DataSpec of the values of `to_json`.

        Raises:
            ValueError: the values are not those of a DataSpec.
        """
        from pydantic import TypeAdapter

        spec = TypeAdapter(cls).validate_python(values)
        low, high = spec.range
        if not low < high or not spec.shape or spec.dim >= 2**31:
            raise ValueError(f"shape {list(spec.shape)}, range {list(spec.range)}")
        if len(spec.categories) != (spec.dim if spec.kind == "table" else 0):
            raise ValueError(f"{len(spec.categories)} numbers of categories in a {spec.kind} spec")
        return spec


@dataclass
class Batch:
    """One batch of items.

    Attributes:
        x: the items (B, *shape).
        y: labels (B,) int64.
        cond: conditions (B, …): source images, context frames, captions.
    """

    x: Tensor
    y: Tensor | None = None
    cond: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def repeat(self, times: int) -> Batch:
        """Return the batch with all its items `times` times."""
        if times == 1:
            return self

        def tile(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat(times, *[1] * (tensor.dim() - 1))

        return Batch(self.x.repeat(times, *[1] * (self.x.dim() - 1)), tile(self.y), tile(self.cond))

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(self.x.to(device, non_blocking=True), move(self.y), move(self.cond))
