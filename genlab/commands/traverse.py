"""genlab traverse: vary one dimension or category of a code at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.abilities import abilities
from genlab.batching import BATCH_SIZE, map_batched
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.items_and_codes import ItemSelection, Space, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_ability, require_command_support
from genlab.inference.results import Results, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, DataSpec, Positive, PositiveFloat
from genlab.tables import print_table
from genlab.viz import item_pictures
from genlab.viz.latents import (
    code_range_axes,
    plot_decoded_code_grid,
    plot_paths,
    prior_quantile_axes,
)
from genlab.viz.picture import Picture, make_picture

MAX_COLUMNS = 10  # values of a category in a row
MAX_POINTS = 2000  # of the data around a manifold


@dataclass
class CodeSpace:
    """The codes of a model as vectors: where to start, how far to move, and how to decode.

    `choices` are the parts of a code that are one-hot categories, by name.
    """

    shape: torch.Size  # of one code
    decode: Callable[[Tensor], Tensor]  # codes (B, d) to items (B, *spec.shape)
    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    start: Tensor  # (d,)
    choices: dict[str, slice]

    @property
    def category_of_dimension(self) -> dict[int, str]:
        """The name of the category for each dimension that belongs to one."""
        indices = range(len(self.mean))
        return {k: name for name, part in self.choices.items() for k in indices[part]}

    def codes_along_dimension(self, k: int, t: Tensor) -> Tensor:
        """Return the start codes (T, d) with dimension k at t (T,) standard deviations."""
        z = self.start.repeat(len(t), 1)
        z[:, k] = self.mean[k] + t * self.std[k]
        return z

    def codes_of_category_values(self, name: str) -> Tensor:
        """Return the start codes (K, d) with each of the K values of a category."""
        part = self.choices[name]
        values = all_one_hot_vectors(len(self.start[part]), self.start)
        z = self.start.repeat(len(values), 1)
        z[:, part] = values
        return z


@torch.no_grad()
def traverse(
    run: LoadedRun,
    *,
    space: Space = "z",
    dims: list[Count] | None = None,
    n: Positive = 10,
    frames: Annotated[int, Ge(2)] = 11,
    range_sigma: PositiveFloat = 2.5,
    item: Count | None = None,
    label: ClassNumber | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Move single dimensions of a code by ± `range_sigma` standard deviations.

    The effect of a dimension is the squared difference of the items at its two ends. The mean and
    the standard deviation are those of the prior, or of the codes of data. A one-hot part of the
    code (a category or a class) is shown in a separate picture of its values; their effects are
    the squared differences from the item at the start.

    Args:
        space: "w" moves the dimensions of the prior's styles.
        dims: indices of the dimensions; None selects the n that have the largest effect.
        item: index of the item whose code is the start; None is the mean code. A category starts at
            its most likely value.
        label: the class of a conditional prior, and of the start; None is class 0.

    Raises:
        UserError: the model does not decode; a dimension, item or class does not exist; a dimension
            is a value of a category.
    """
    request = CommandRequest.from_command_call(traverse, [run], locals())
    require_command_support(run, "traverse")
    if space == "w" and item is not None:
        raise UserError(
            "item= is for space=z: items of the data lack styles; genlab project finds some"
        )
    prior_label = items_and_codes.prior_label_or_default(run, label, default=0)
    codes = items_and_codes.prior_or_encoded_codes(
        run, split=split, seed=seed, label=prior_label, space=space
    )
    selection = None if item is None else ItemSelection(None, [item], split, seed)
    axes = make_code_space(run, codes, space, selection, label)
    refuse_invalid_dims(run, axes, dims or [])

    t = torch.linspace(-range_sigma, range_sigma, frames, dtype=codes.dtype, device=codes.device)
    values = {
        name: axes.decode(axes.codes_of_category_values(name)) for name in axes.choices
    }  # (K, *shape) each
    effect = measure_dimension_effects(axes, t, values)
    if dims is None:
        order = effect.argsort(descending=True, stable=True).tolist()
        dims = [k for k in order if k not in axes.category_of_dimension][:n]
    decoded = axes.decode(torch.cat([axes.codes_along_dimension(k, t) for k in dims]))
    decoded = decoded.unflatten(0, (len(dims), frames))  # (n, T, *shape)

    images = {"": render_traversal(decoded, run.spec, [f"{space}{k}" for k in dims], t)}
    if axes.shape == (2,):
        plane = prior_quantile_axes if "prior" in abilities(run.model) else code_range_axes
        decode = items_and_codes.decoder_of_code_space(run, space)
        data = None
        if run.spec.kind == "points":
            shown = ItemSelection(MAX_POINTS, None, split, seed)
            data = items_and_codes.load_selected_items_and_indices(run, shown)[0].x
        images["manifold"] = plot_decoded_code_grid(
            decode, run.spec, plane(codes.flatten(1)), data=data, codes=codes.flatten(1)
        )
    images |= {
        name: render_category_values(name, items, run.spec) for name, items in values.items()
    }
    rows = [[str(k), f"{effect[k].item():.4g}"] for k in dims]
    rows += [[name, f"{effect[part].max().item():.4g}"] for name, part in axes.choices.items()]
    print_table(["dimension", "effect"], rows)
    results = Results(
        "traverse" + ("_w" if space == "w" else ""),
        seed,
        record={
            "space": space,
            "dims": dims,
            "frames": frames,
            "range_sigma": range_sigma,
            "item": item,
            "label": label,
            "effect": effect.tolist(),
        },
        images=images,
        arrays={
            "frames": decoded,
            "t": t,
            "dims": np.array(dims),
            "start": axes.start.unflatten(0, axes.shape),
            "effect": effect,
            **values,
        },
        items={"frames": ("row", "frame"), **dict.fromkeys(values, ())},
    )
    return write_results(run, request, results, output_dir)


def make_code_space(
    run: LoadedRun,
    codes: Tensor,
    space: Space,
    selection: ItemSelection | None,
    label: int | None,
) -> CodeSpace:
    """Return the space of reference codes (N, …), starting at their mean or at an item."""
    shape, codes = codes.shape[1:], codes.flatten(1)
    decode = items_and_codes.decoder_of_code_space(run, space)
    if selection is None:
        start = codes.mean(0)
    else:
        require_ability(run, "encode", "label= or no item=, to start at the mean code")
        start = run.model.encode(
            items_and_codes.load_selected_items_and_indices(run, selection)[0].x
        ).flatten()
    choices = run.model.code_choices if space == "z" else {}
    for name, part in choices.items():
        # A code has one value of each category; the mean code would be a mixture of all.
        value = start[part].argmax() if label is None or name != "class" else label
        start[part] = all_one_hot_vectors(len(start[part]), start)[value]
    return CodeSpace(
        shape,
        lambda z: map_batched(lambda batch: decode(batch.unflatten(1, shape)), z),
        codes.mean(0),
        codes.std(0),
        start,
        choices,
    )


def refuse_invalid_dims(run: LoadedRun, axes: CodeSpace, dims: list[int]) -> None:
    """Refuse dimensions that the code does not have, or that belong to a category.

    Raises:
        UserError: names the dimension.
    """
    for k in dims:
        if k >= len(axes.mean):
            raise UserError(
                f"dims={dims}: the code of {run.name} has the dimensions 0 to {len(axes.mean) - 1}"
            )
        if k in axes.category_of_dimension:
            raise UserError(
                f"dims={dims}: dimension {k} of this code is a value of its "
                f"{axes.category_of_dimension[k]}, which a separate picture shows; leave {k} out"
            )


def measure_dimension_effects(axes: CodeSpace, t: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Return the effect (d,) float64 of each dimension, or of each value of a category."""
    movable = torch.tensor(
        [k for k in range(len(axes.mean)) if k not in axes.category_of_dimension]
    )
    ends = [
        axes.decode(torch.cat([axes.codes_along_dimension(k, t[[0, -1]]) for k in some]))
        for some in movable.split(BATCH_SIZE)
    ]
    effect = torch.zeros(len(axes.mean), dtype=torch.float64, device=axes.start.device)
    low, high = torch.cat(ends).unflatten(0, (-1, 2)).unbind(1)
    effect[movable] = items_and_codes.squared_error_per_item(low, high)
    for name, part in axes.choices.items():
        effect[part] = items_and_codes.squared_error_per_item(
            values[name], axes.decode(axes.start[None])
        )
    return effect


def render_traversal(decoded: Tensor, spec: DataSpec, names: list[str], t: Tensor) -> Picture:
    """Return a row of images (n, T, C, H, W) for each dimension, or the curves of points."""
    if spec.kind != "image":
        return plot_paths(decoded, names)
    images = item_pictures.to_uint8_images(decoded.flatten(0, 1), spec)
    columns = [f"{v:+.2g}σ" if v else "0" for v in t.tolist()]
    return make_picture(
        images,
        columns=len(columns),
        row_names=names,
        column_names=columns,
        note="one dimension of the code per row, moved by so many standard deviations",
    )


def render_category_values(name: str, items: Tensor, spec: DataSpec) -> Picture:
    """Return the items (K, *shape) of the values of a category, numbered, ten per row."""
    if spec.kind != "image":
        return item_pictures.render_items_as_picture(items, spec)
    columns = min(MAX_COLUMNS, len(items))
    return make_picture(
        item_pictures.to_uint8_images(items, spec),
        columns=columns,
        row_names=[f"{name} {first}" for first in range(0, len(items), columns)],
        column_names=[f"+{i}" for i in range(columns)],
        note=f"the values of the code's {name}",
    )


def all_one_hot_vectors(n: int, like: Tensor) -> Tensor:
    """Return the n values (n, n) of a one-hot category."""
    return torch.eye(n, dtype=like.dtype, device=like.device)
