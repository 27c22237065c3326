"""genlab traverse: vary one dimension or category of a code at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.abilities import abilities, require
from genlab.batching import BATCH_SIZE, map_batched
from genlab.config.recipes import models_with
from genlab.console import print_table
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.queries import ItemSelection, Space, Split
from genlab.inference.requirements import require_command
from genlab.inference.results import Results, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, DataSpec, Positive, PositiveFloat
from genlab.viz import image_grids
from genlab.viz.latents import code_range_axes, plot_manifold, plot_paths, prior_quantile_axes

MAX_COLUMNS = 10  # values of a category in a row


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
    def choice_of(self) -> dict[int, str]:
        """The name of the category for each dimension that belongs to one."""
        indices = range(len(self.mean))
        return {k: name for name, part in self.choices.items() for k in indices[part]}

    def move(self, k: int, t: Tensor) -> Tensor:
        """Return the start codes (T, d) with dimension k at t (T,) standard deviations."""
        z = self.start.repeat(len(t), 1)
        z[:, k] = self.mean[k] + t * self.std[k]
        return z

    def set_choice(self, name: str) -> Tensor:
        """Return the start codes (K, d) with each of the K values of a category."""
        part = self.choices[name]
        values = one_hot_values(len(self.start[part]), self.start)
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
    label: Count | None = None,
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
    require_command(run, "traverse")
    if space == "w" and item is not None:
        raise UserError(
            "item= is for space=z: items of the data lack styles; genlab project finds some"
        )
    prior_label = queries.check_prior_label(run, label, default=0)
    codes = queries.reference_codes(run, split=split, seed=seed, label=prior_label, space=space)
    selection = None if item is None else ItemSelection(None, [item], split, seed)
    axes = make_code_space(run, codes, space, selection, label)
    check_dims(run, axes, dims or [])

    t = torch.linspace(-range_sigma, range_sigma, frames, dtype=codes.dtype, device=codes.device)
    values = {name: axes.decode(axes.set_choice(name)) for name in axes.choices}  # (K, *shape) each
    effect = measure_effects(axes, t, values)
    if dims is None:
        order = effect.argsort(descending=True, stable=True).tolist()
        dims = [k for k in order if k not in axes.choice_of][:n]
    decoded = axes.decode(torch.cat([axes.move(k, t) for k in dims]))
    decoded = decoded.unflatten(0, (len(dims), frames))  # (n, T, *shape)

    images = {"": render_traversal(decoded, run.spec, [f"{space}{k}" for k in dims], t)}
    if axes.shape == (2,):
        plane = prior_quantile_axes if "prior" in abilities(run.model) else code_range_axes
        decode = queries.decoder_for(run, space)
        images["manifold"] = plot_manifold(decode, run.spec, plane(codes.flatten(1)))
    images |= {name: render_choice(name, items, run.spec) for name, items in values.items()}
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
    )
    return write_results(run, results, output_dir)


def make_code_space(
    run: LoadedRun,
    codes: Tensor,
    space: Space,
    selection: ItemSelection | None,
    label: int | None,
) -> CodeSpace:
    """Return the space of reference codes (N, …), starting at their mean or at an item."""
    shape, codes = codes.shape[1:], codes.flatten(1)
    decode = queries.decoder_for(run, space)
    if selection is None:
        start = codes.mean(0)
    else:
        require(run.model, "encode", lambda: models_with("encode"))
        start = run.model.encode(queries.select_items(run, selection)[0].x).flatten()
    choices = run.model.code_choices if space == "z" else {}
    for name, part in choices.items():
        # A code has one value of each category; the mean code would be a mixture of all.
        value = start[part].argmax() if label is None or name != "class" else label
        start[part] = one_hot_values(len(start[part]), start)[value]
    return CodeSpace(
        shape,
        lambda z: map_batched(lambda batch: decode(batch.unflatten(1, shape)), z),
        codes.mean(0),
        codes.std(0),
        start,
        choices,
    )


def check_dims(run: LoadedRun, axes: CodeSpace, dims: list[int]) -> None:
    """Refuse dimensions that the code does not have, or that belong to a category.

    Raises:
        UserError: names the dimension.
    """
    for k in dims:
        if k >= len(axes.mean):
            raise UserError(
                f"dims={dims}: the code of {run.name} has the dimensions 0 to {len(axes.mean) - 1}"
            )
        if k in axes.choice_of:
            raise UserError(
                f"dims={dims}: dimension {k} of this code is a value of its {axes.choice_of[k]}, "
                f"which a separate picture shows; leave {k} out"
            )


def measure_effects(axes: CodeSpace, t: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Return the effect (d,) float64 of each dimension, or of each value of a category."""
    movable = torch.tensor([k for k in range(len(axes.mean)) if k not in axes.choice_of])
    ends = [
        axes.decode(torch.cat([axes.move(k, t[[0, -1]]) for k in some]))
        for some in movable.split(BATCH_SIZE)
    ]
    effect = torch.zeros(len(axes.mean), dtype=torch.float64, device=axes.start.device)
    low, high = torch.cat(ends).unflatten(0, (-1, 2)).unbind(1)
    effect[movable] = queries.squared_error(low, high)
    for name, part in axes.choices.items():
        effect[part] = queries.squared_error(values[name], axes.decode(axes.start[None]))
    return effect


def render_traversal(decoded: Tensor, spec: DataSpec, names: list[str], t: Tensor) -> np.ndarray:
    """Return a row of images (n, T, C, H, W) for each dimension, or the curves of points."""
    if spec.kind != "image":
        return plot_paths(decoded)
    images = image_grids.to_uint8_images(decoded.flatten(0, 1), spec)
    columns = [f"{v:+.2g}σ" if v else "0" for v in t.tolist()]
    grid = image_grids.make_grid(images, columns=len(columns))
    return image_grids.add_captions(grid, rows=names, columns=columns)


def render_choice(name: str, items: Tensor, spec: DataSpec) -> np.ndarray:
    """Return the items (K, *shape) of the values of a category, numbered, ten per row."""
    if spec.kind != "image":
        return image_grids.render_items(items, spec)
    columns = min(MAX_COLUMNS, len(items))
    grid = image_grids.make_grid(image_grids.to_uint8_images(items, spec), columns=columns)
    rows = [f"{name} {first}" for first in range(0, len(items), columns)]
    return image_grids.add_captions(grid, rows=rows, columns=[f"+{i}" for i in range(columns)])


def one_hot_values(n: int, like: Tensor) -> Tensor:
    """Return the n values (n, n) of a one-hot category."""
    return torch.eye(n, dtype=like.dtype, device=like.device)
