"""genlab traverse: one dimension of the code at a time, from end to end, a choice by its values; a code of two as a map."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.abilities import abilities, choices, need
from genlab.config.recipes import able
from genlab.console import show
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive, PositiveFloat, Spec
from genlab.viz import image_grids
from genlab.viz.latents import lines, manifold, prior_axes, range_axes

COLUMNS = 10  # values of a choice in a row


@torch.no_grad()
def traverse(
    run: Run,
    *,
    space: queries.Space = "z",
    dims: list[Count] | None = None,
    n: Positive = 10,
    frames: Annotated[int, Ge(2)] = 11,
    span: PositiveFloat = 2.5,
    item: Count | None = None,
    y: Count | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Move single dimensions of a code by ± `span` standard deviations; write a row each and return each one's effect.

    A dimension's effect is the squared difference of the items at its two ends. The mean and spread are the prior's, or
    without one those of data's codes. A one-hot part of the code, a category or a class, is no number that moves: a picture of
    its own goes through its values, whose effects are the squared differences from the item at the start.

    Args:
        space: "w": the dimensions of the prior's styles.
        dims: numbers of the dimensions; None: the n that have the most effect.
        item: the test item at whose code to start; None: the mean code. Of each choice it has the likeliest value.
        y: the class of a conditional prior, and to start with; None: class 0.

    Raises:
        UserError: the model does not decode, there is no such dimension, item or class, or a dimension is a choice's value.
    """
    ready(run, "traverse")
    if space == "w" and item is not None:
        raise UserError(
            "item= is for space=z: items of the data have no styles; genlab project finds some"
        )
    codes = queries.reference(
        run, split, seed, queries.one_class(run, y, default=0), space
    )  # (N, …)
    shape, codes = codes.shape[1:], codes.flatten(1)
    middle, spread = codes.mean(0), codes.std(0)  # (d,)
    if item is None:
        start = middle.clone()
    else:
        need(run.model, "encode", lambda: able("encode"))
        start = run.model.encode(queries.items(run, split, None, seed, [item])[0].x).flatten()
    parts = choices(run.model) if space == "z" else {}
    for (
        name,
        part,
    ) in (
        parts.items()
    ):  # a code has one value of each, and the mean code would have all of them a little
        value = start[part].argmax() if y is None or name != "class" else y
        start[part] = one_hot(len(start[part]), start)[value]
    chosen = {k: name for name, part in parts.items() for k in range(len(middle))[part]}
    for k in dims or ():
        if k >= len(middle):
            raise UserError(
                f"dims={dims}: the code of {run.name} has the dimensions 0 to {len(middle) - 1}"
            )
        if k in chosen:
            raise UserError(f"dims={dims}: dimension {k} of this code is a value of its {chosen[k]}, which another picture goes "
                            f"through; leave {k} out")  # fmt: skip

    whole = queries.decoder(run, space)

    def decode(z: Tensor) -> Tensor:  # (N, d) to (N, *shape)
        return queries.through(lambda part: whole(part.unflatten(1, shape)), z)

    def moved(k: int, t: Tensor) -> Tensor:  # the codes (T, d) with dimension k at each of t (T,)
        z = start.repeat(len(t), 1)
        z[:, k] = middle[k] + t * spread[k]
        return z

    def picked(part: slice) -> Tensor:  # the codes (K, d) with each value of a choice
        values = one_hot(len(start[part]), start)
        z = start.repeat(len(values), 1)
        z[:, part] = values
        return z

    t = torch.linspace(-span, span, frames, dtype=codes.dtype, device=codes.device)
    free = torch.tensor([k for k in range(len(middle)) if k not in chosen])
    ends = [
        decode(torch.cat([moved(k, t[[0, -1]]) for k in some]))
        for some in free.split(queries.AT_ONCE)
    ]
    effect = torch.zeros(len(middle), dtype=torch.float64, device=codes.device)
    effect[free] = queries.squared_error(*torch.cat(ends).unflatten(0, (-1, 2)).unbind(1))
    values = {name: decode(picked(part)) for name, part in parts.items()}  # each (K, *shape)
    for name, part in parts.items():
        effect[part] = queries.squared_error(values[name], decode(start[None]))
    order = [k for k in effect.argsort(descending=True, stable=True).tolist() if k not in chosen]
    dims = order[:n] if dims is None else dims
    decoded = decode(torch.cat([moved(k, t) for k in dims])).unflatten(
        0, (len(dims), frames)
    )  # (n, T, *shape)

    if run.spec.kind == "image":
        sheet = image_grids.grid(
            image_grids.to_bytes(decoded.flatten(0, 1), run.spec), columns=frames
        )
        sheet = image_grids.captioned(
            sheet,
            rows=[f"{space}{k}" for k in dims],
            columns=[f"{v:+.2g}σ" if v else "0" for v in t.tolist()],
        )
    else:
        sheet = lines(decoded)
    images: dict[str, np.ndarray] = {"": sheet}
    if shape == (2,):
        axes = prior_axes if "prior" in abilities(run.model) else range_axes
        images["manifold"] = manifold(whole, run.spec, axes(codes))
    images |= {name: each_value(name, items, run.spec) for name, items in values.items()}
    rows = [[str(k), effect[k]] for k in dims] + [
        [name, effect[part].max()] for name, part in parts.items()
    ]
    show(["dimension", "effect"], [[name, f"{value.item():.4g}"] for name, value in rows])
    return queries.write(
        run, "traverse" + "_w" * (space == "w"), seed=seed, out=out, images=images,
        record={"space": space, "dims": dims, "frames": frames, "span": span, "item": item, "y": y, "effect": effect.tolist()},
        arrays={"frames": decoded, "t": t, "dims": np.array(dims), "start": start.unflatten(0, shape), "effect": effect,
                **values},
    )  # fmt: skip


def one_hot(n: int, like: Tensor) -> Tensor:
    """Return the n values (n, n) of a choice."""
    return torch.eye(n, dtype=like.dtype, device=like.device)


def each_value(name: str, items: Tensor, spec: Spec) -> np.ndarray:
    """Return the items (K, *shape) of a choice's values in order as a picture (H', W', 3), of images numbered, ten in a row."""
    if spec.kind != "image":
        return image_grids.picture(items, spec)
    columns = min(COLUMNS, len(items))
    sheet = image_grids.grid(image_grids.to_bytes(items, spec), columns=columns)
    rows = [f"{name} {first}" for first in range(0, len(items), columns)]
    return image_grids.captioned(sheet, rows=rows, columns=[f"+{i}" for i in range(columns)])
