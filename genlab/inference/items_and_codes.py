"""Select items of a run's data, and encode, draw and decode codes with its model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.batching import map_batched
from genlab.data.shuffling import seeded_permutation
from genlab.errors import UserError
from genlab.inference.requirements import require_ability
from genlab.metrics import psnr_ssim, reconstruction
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch

Split = Literal["test", "validation", "train"]
# The space of a code: z is the prior's, w that of the styles of a style-based generator.
Space = Literal["z", "w"]
REFERENCE_CODES = 10_000  # codes drawn to estimate the mean and the spread of the prior


@dataclass(frozen=True)
class ItemSelection:
    """Items of a split that a command works on: n drawn by the seed, or those listed."""

    n: int | None = None  # None selects the whole split
    items: list[int] | None = None  # indices in the split, instead of n
    split: Split = "test"
    seed: int = 0


# --- items ----------------------------------------------------------------------------------------


def load_selected_items_and_indices(
    run: LoadedRun, selection: ItemSelection
) -> tuple[Batch, Tensor]:
    """Return the selected items on the run's device, and their indices (N,) in the split.

    Raises:
        UserError: the split is empty, or does not contain a listed item.
    """
    index = selected_item_indices(run, selection)
    return load_items_onto_device(run, index, split=selection.split, seed=selection.seed), index


def selected_item_indices(run: LoadedRun, selection: ItemSelection) -> Tensor:
    """Return the indices (N,) of the selected items in their split."""
    size = run.dataset.size(selection.split)
    if size and selection.items is None:
        return seeded_permutation(size, selection.seed, 0)[: selection.n]
    return torch.tensor(selection.items or [0])


def load_items_onto_device(run: LoadedRun, index: Tensor, *, split: Split, seed: int) -> Batch:
    """Return the items of a split with the given indices (N,), on the run's device.

    Raises:
        UserError: the split is empty, or does not contain one of the items.
    """
    return run.device.to_device(run.dataset.items(split, index, seed=seed))


# --- codes ----------------------------------------------------------------------------------------


def prior_or_encoded_codes(
    run: LoadedRun, *, split: Split, seed: int, label: int | None = None, space: Space = "z"
) -> Tensor:
    """Return codes (N, …) that the decoder was trained on: of the prior, else of data.

    Args:
        label: the class of the draws, for a prior that is conditioned on classes.
    """
    if space == "w" or "prior" in abilities(run.model):
        torch.manual_seed(seed)
        return draw_prior_codes(run, REFERENCE_CODES, label, space)
    selection = ItemSelection(REFERENCE_CODES, split=split, seed=seed)
    return map_batched(run.model.encode, load_selected_items_and_indices(run, selection)[0].x)


@torch.no_grad()
def draw_prior_codes(
    run: LoadedRun, n: int, label: int | None = None, space: Space = "z"
) -> Tensor:
    """Draw n codes (n, …) from the prior, of class `label` if given; in w, their styles.

    Raises:
        UserError: the space is w and the model does not have styles.
    """
    labels = None if label is None else torch.full((n,), label, device=run.device.torch)
    z = run.model.prior(n) if labels is None else run.model.prior(n, labels)
    if space == "z":
        return z
    require_ability(run, "styles")
    return map_batched(run.model.styles, z)[:, 0]


def decoder_of_code_space(run: LoadedRun, space: Space = "z") -> Callable[[Tensor], Tensor]:
    """Return the function from codes of a space to items (B, *shape).

    A code of w (B, dim) is one style, used in every layer.

    Raises:
        UserError: the space is w and the model does not have styles.
    """
    if space == "z":
        decode: Callable[[Tensor], Tensor] = run.model.decode
        return decode
    require_ability(run, "synthesize")

    def synthesize(w: Tensor) -> Tensor:
        return run.model.synthesize(w[:, None])

    return synthesize


def prior_label_or_default(
    run: LoadedRun, label: int | None, *, default: int | None = None
) -> int | None:
    """Return the requested class, or `default`; None without classes in the prior.

    Raises:
        UserError: the prior is not conditioned on classes, or the data does not have the class.
    """
    conditional = run.model.conditional_prior
    if label is not None and not conditional:
        raise UserError(
            f"label={label}: the prior of this {run.name} is not conditioned on classes; train it "
            "with model.conditional=true where the recipe has that option"
        )
    if label is not None:
        refuse_unknown_class(run, label)
    return default if label is None and conditional else label


def refuse_unknown_class(run: LoadedRun, label: int, option: str = "label") -> None:
    """Refuse a class that the run's data does not have.

    Raises:
        UserError: names the option and the classes.
    """
    if label >= run.spec.num_classes:
        raise UserError(
            f"{option}={label}: {run.dataset_name} has the classes 0 to {run.spec.num_classes - 1}"
        )


# --- errors ---------------------------------------------------------------------------------------


def squared_error_per_item(x: Tensor, other: Tensor) -> Tensor:
    """Return the squared error (N,) float64, summed over the values of each item (N, *shape)."""
    return reconstruction.scaled_squared_error_per_item(x.double(), other.double())


def finite_psnr_per_item(x: Tensor, other: Tensor, data_range: float) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB; finite for equal images too.

    Args:
        data_range: the difference between the largest and the smallest possible value.
    """
    rounding = (data_range * torch.finfo(torch.float32).eps) ** 2
    return psnr_ssim.psnr(x, other, data_range=data_range, min_mse=rounding)


def value_range_length(x: Tensor, run: LoadedRun) -> float:
    """Return the length of the range of images, or of the values x of other data."""
    low, high = run.spec.range if run.spec.kind == "image" else (x.min().item(), x.max().item())
    return float(high - low)
