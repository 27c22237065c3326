"""genlab mix: items whose coarse styles come from one draw and whose fine styles come from another.

Karras et al. 2019, https://arxiv.org/abs/1812.04948, section 3.1 and figure 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Fraction, Positive
from genlab.viz import image_grids

SCALES = ("coarse", "middle", "fine")


def mixtures(w: Tensor, other: Tensor, start: int, end: int) -> Tensor:
    """Return every w (A, L, D) with the layers from `start` to before `end` of every other (B, L, D): (A, B, L, D)."""
    both = w[:, None].repeat(1, len(other), 1, 1)
    both[:, :, start:end] = other[None, :, start:end]
    return both


@torch.no_grad()
def mix(
    run: Run,
    *,
    rows: Positive = 4,
    columns: Positive = 5,
    cuts: tuple[Count, Count] | None = None,
    truncation: Fraction = 1.0,
    y: Count | tuple[Count, Count] | None = None,
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Give each of `rows` draws A the coarse, the middle or the fine styles of each of `columns` draws B; write a grid each.

    The distances say what the layers are about: how far, in mean squared difference, the items are from A's and from B's.

    Args:
        cuts: the first middle and the first fine layer; None: thirds.
        truncation: below 1 the styles are drawn to their mean.
        y: of a conditional model: the class of all, or of A and of B.

    Raises:
        UserError: the model has no styles, or no such layers or classes.
    """
    ready(run, "mix")
    torch.manual_seed(seed)
    classes = [queries.one_class(run, k) for k in (y if isinstance(y, tuple) else (y, y))]
    a, b = (
        run.model.styles(queries.draw(run, n, k), truncation=truncation)
        for n, k in zip((rows, columns), classes, strict=True)
    )  # (A, L, D), (B, L, D)
    layers = a.shape[1]
    if cuts is None:
        cuts = round(layers / 3), round(2 * layers / 3)
    if not 0 < cuts[0] <= cuts[1] <= layers:
        raise UserError(
            f"cuts={list(cuts)}: {run.name} has the layers 0 to {layers - 1}; give two of them, rising from 1"
        )

    from_a, from_b = (queries.through(run.model.synthesise, w) for w in (a, b))
    record: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "layers": layers,
        "truncation": truncation,
    }
    images, arrays = {}, {"a": from_a, "b": from_b, "w_a": a, "w_b": b}
    for scale, start, end in zip(SCALES, (0, *cuts), (*cuts, layers), strict=True):
        if start == end:
            continue
        x = queries.through(
            run.model.synthesise, mixtures(a, b, start, end).flatten(0, 1)
        )  # (A · B, *shape)
        to_a = queries.squared_error(x, from_a.repeat_interleave(columns, 0)) / run.spec.dim
        to_b = queries.squared_error(x, from_b.repeat(rows, *[1] * (x.dim() - 1))) / run.spec.dim
        record |= {f"{scale}_layers": [start, end - 1]}
        record |= {
            f"{scale}_of_b_distance_to_a": queries.mean(to_a),
            f"{scale}_of_b_distance_to_b": queries.mean(to_b),
        }
        arrays[scale] = x.unflatten(0, (rows, columns))
        corner = torch.full_like(from_a[:1], run.spec.range[1])
        lines = torch.cat([from_a[:, None], arrays[scale]], 1).flatten(
            0, 1
        )  # A's own before its row, B's above their columns
        sheet = image_grids.to_bytes(torch.cat([corner, from_b, lines]), run.spec)
        images[scale] = image_grids.captioned(
            image_grids.grid(sheet, columns=columns + 1),
            rows=[f"{scale} of B", *(f"A{i + 1}" for i in range(rows))],
            columns=["", *(f"B{i + 1}" for i in range(columns))],
        )
    return queries.write(
        run, "mix", seed=seed, out=out, record=record, images=images, arrays=arrays
    )
