"""genlab mix: combine the coarse styles of one sample with the fine styles of another.

Karras et al. 2019, https://arxiv.org/abs/1812.04948, section 3.1 and figure 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, Fraction, Positive
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture

SCALES = ("coarse", "middle", "fine")


def mix_styles(w: Tensor, other: Tensor, start: int, end: int) -> Tensor:
    """Return every w (A, L, D) with the layers start … end − 1 of every other (B, L, D).

    The result is (A, B, L, D).
    """
    mixed = w[:, None].repeat(1, len(other), 1, 1)
    mixed[:, :, start:end] = other[None, :, start:end]
    return mixed


@torch.no_grad()
def mix(
    run: LoadedRun,
    *,
    rows: Positive = 4,
    columns: Positive = 5,
    cuts: tuple[Count, Count] | None = None,
    truncation: Fraction = 1.0,
    label: ClassNumber | tuple[ClassNumber, ClassNumber] | None = None,
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Give each of `rows` samples A the styles of each of `columns` samples B.

    The coarse, the middle and the fine styles are exchanged in turn. The distances show what the
    layers control: the mean squared difference of the mixed items from A's and from B's.

    Args:
        cuts: the first middle layer and the first fine layer; None cuts into thirds.
        truncation: below 1, the styles are moved toward their mean.
        label: for a conditional model, the class of all samples, or the classes of A and of B.

    Raises:
        UserError: the model lacks styles, or such layers or classes.
    """
    request = CommandRequest.from_command_call(mix, [run], locals())
    require_command_support(run, "mix")
    torch.manual_seed(seed)
    labels = label if isinstance(label, tuple) else (label, label)
    w_a, w_b = (
        run.model.styles(
            items_and_codes.draw_prior_codes(
                run, n, items_and_codes.prior_label_or_default(run, k)
            ),
            truncation=truncation,
        )
        for n, k in zip((rows, columns), labels, strict=True)
    )  # (A, L, D), (B, L, D)
    layers = w_a.shape[1]
    if cuts is None:
        cuts = round(layers / 3), round(2 * layers / 3)
    if not 0 < cuts[0] <= cuts[1] <= layers:
        raise UserError(
            f"cuts={list(cuts)}: {run.name} has the layers 0 to {layers - 1}; give two of them, "
            "ascending from 1"
        )

    a, b = (map_batched(run.model.synthesize, w) for w in (w_a, w_b))
    record: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "layers": layers,
        "truncation": truncation,
    }
    images, arrays = {}, {"a": a, "b": b, "w_a": w_a, "w_b": w_b}
    for scale, start, end in zip(SCALES, (0, *cuts), (*cuts, layers), strict=True):
        if start == end:
            continue
        w = mix_styles(w_a, w_b, start, end).flatten(0, 1)
        x = map_batched(run.model.synthesize, w).unflatten(0, (rows, columns))  # (A, B, *shape)
        distance_to_a = items_and_codes.squared_error_per_item(
            x.flatten(0, 1), row_item_per_cell(a, columns)
        )
        distance_to_b = items_and_codes.squared_error_per_item(
            x.flatten(0, 1), column_item_per_cell(b, rows)
        )
        record |= {
            f"{scale}_layers": [start, end - 1],
            f"{scale}_of_b_distance_to_a": mean_and_error_dict(distance_to_a / run.spec.dim),
            f"{scale}_of_b_distance_to_b": mean_and_error_dict(distance_to_b / run.spec.dim),
        }
        arrays[scale] = x
        images[scale] = render_style_mixing_grid(run, a, b, x, f"{scale} of B")
    results = Results("mix", seed, record, images, arrays)
    return write_results(run, request, results, output_dir)


def row_item_per_cell(a: Tensor, columns: int) -> Tensor:
    """Return the item A (A · B, *shape) of each cell of a grid."""
    return a.repeat_interleave(columns, 0)


def column_item_per_cell(b: Tensor, rows: int) -> Tensor:
    """Return the item B (A · B, *shape) of each cell of a grid."""
    return b[None].expand(rows, *b.shape).flatten(0, 1)


def render_style_mixing_grid(
    run: LoadedRun, a: Tensor, b: Tensor, x: Tensor, corner: str
) -> Picture:
    """Return mixed items x (A, B, C, H, W) as a grid, with A's at the left and B's at the top."""
    rows, columns = x.shape[:2]
    blank = torch.full_like(a[:1], run.spec.range[1])
    lines = torch.cat([a[:, None], x], 1).flatten(0, 1)
    pixels = item_pictures.to_uint8_images(torch.cat([blank, b, lines]), run.spec)
    return make_picture(
        pixels,
        columns=columns + 1,
        row_names=[corner, *(f"A{i + 1}" for i in range(rows))],
        column_names=["", *(f"B{i + 1}" for i in range(columns))],
        note=f"each cell has the {corner} of its column and the other layers of its row",
    )
