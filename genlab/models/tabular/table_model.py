"""The base class of models of tables: columns, one-hot categories and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.errors import UserError
from genlab.model import GenerativeModel
from genlab.spec import DataSpec


class TableModel(GenerativeModel, ABC):
    """A model of rows x (B, D) with C columns of numbers and categories.

    Before the first update the trainer calls `fit_columns` with all training rows. What it finds is
    stored in buffers whose shapes depend on the DataSpec only, so that a checkpoint has them.

    Args:
        conditional: learn p(x | y); classes that are not given are drawn as often as in training.

    Raises:
        UserError: the data is not a table, or does not have labels.
    """

    takes_tables = True

    numeric: Tensor  # (N,) the columns of numbers
    categorical: Tensor  # (C,) the columns of categories
    sizes: Tensor  # (C,) categories of each
    starts: Tensor  # (C,) where a column starts among all one-hot values
    class_fractions: Tensor  # (num_classes,) of the training rows

    def __init__(self, spec: DataSpec, *, conditional: bool, name: str) -> None:
        super().__init__()
        if spec.kind != "table":
            raise UserError(
                f"{name} models tables, and this dataset has {spec.kind} data of shape "
                f"{spec.shape}; set dataset=mixed_table dataset.path=<file.csv>"
            )
        if conditional and not spec.num_classes:
            raise UserError(
                "model.conditional=true requires labels, but this dataset has none; "
                "set model.conditional=false"
            )
        self.spec, self.conditional = spec, conditional
        numeric = [i for i, size in enumerate(spec.categories) if not size]
        categorical = [i for i, size in enumerate(spec.categories) if size]
        sizes = [spec.categories[i] for i in categorical]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.num_numbers, self.num_categorical = len(numeric), len(categorical)
        self.num_one_hot = sum(sizes)
        for buffer, values in {
            "numeric": numeric,
            "categorical": categorical,
            "sizes": sizes,
            "starts": starts,
        }.items():
            self.register_buffer(buffer, torch.tensor(values, dtype=torch.long), persistent=False)
        fractions = torch.full((max(1, spec.num_classes),), 1 / max(1, spec.num_classes))
        self.register_buffer("class_fractions", fractions)

    @abstractmethod
    def fit_numbers(self, x: Tensor, seed: int) -> None:
        """Fit the transformations of numbers x (M, N) float64, all those of training."""

    def fit_columns(self, x: Tensor, y: Tensor | None, seed: int) -> None:
        """Fit the transformations and the frequencies of classes to the training rows.

        Args:
            x: (M, D).
            y: (M,) or None.
        """
        self.fit_numbers(x[:, self.numeric.cpu()].double().cpu(), seed)
        if y is not None and self.spec.num_classes:
            counts = torch.bincount(y.cpu(), minlength=self.spec.num_classes)
            self.class_fractions.copy_(counts / counts.sum())

    def draw_classes(self, n: int) -> Tensor:
        """Draw classes (n,) as often as the training rows have them."""
        return torch.multinomial(self.class_fractions, n, replacement=True)

    def classes_for_samples(self, n: int, y: Tensor | None) -> Tensor | None:
        """Return the classes (n,) of samples: given or drawn; None in an unconditional model."""
        if not self.conditional:
            return None
        return self.draw_classes(n) if y is None else y

    def class_one_hot(self, y: Tensor | None, like: Tensor) -> Tensor:
        """Return classes (B,) as one-hot values (B, num_classes); (B, 0) if unconditional.

        Classes that are not given are drawn.
        """
        if not self.conditional:
            return like.new_zeros(len(like), 0)
        y = self.draw_classes(len(like)) if y is None else y
        return F.one_hot(y, self.spec.num_classes).to(like.dtype)

    # --- columns ----------------------------------------------------------------------------------

    def split_columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers (B, N) and the categories (B, C) int64 of rows x (B, D)."""
        codes = x[:, self.categorical].round().long()
        return x[:, self.numeric], torch.minimum(codes.clamp(min=0), self.sizes - 1)

    def join_columns(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Return the rows (B, D) of numbers (B, N) and categories (B, C)."""
        x = numbers.new_zeros(len(numbers), self.spec.dim)
        x[:, self.numeric] = numbers
        x[:, self.categorical] = codes.to(numbers.dtype)
        return x

    def codes_to_one_hot(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return categories (B, C) as one-hot values (B, ΣK), column after column."""
        flat = torch.zeros(len(codes), self.num_one_hot, dtype=dtype, device=codes.device)
        return flat.scatter_(1, codes + self.starts, 1.0)


def draw_categories(probabilities: Tensor) -> Tensor:
    """Draw a category (…,) from probabilities (…, K), by the inverse of their sums."""
    sums = probabilities.cumsum(-1)
    u = torch.rand(*sums.shape[:-1], 1, dtype=sums.dtype, device=sums.device) * sums[..., -1:]
    return (sums <= u).sum(-1).clamp(max=sums.shape[-1] - 1)
