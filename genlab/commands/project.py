"""genlab project: the code of a given item, found by descent, and what becomes of the item when the code is changed.

Zhu et al. 2016, https://arxiv.org/abs/1609.03552, section 3; Karras et al. 2020, https://arxiv.org/abs/1912.04958, section 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.image_decoding import BROKEN, Crop, Reader
from genlab.data.npy_files import read_arrays
from genlab.data.preprocessing import Preparation
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.latent_search import drawn, searches
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, NonNegative, Positive, Spec
from genlab.viz import image_grids


def project(
    run: Run,
    *,
    space: queries.Space = "z",
    images: list[str] | str | None = None,
    crop: Crop = "center",
    n: Positive = 6,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    y: Count | None = None,
    steps: Positive = 500,
    tries: Positive = 3,
    weight: NonNegative = 0.001,
    edit: str | None = None,
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0),
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Search the code whose item has the least squared error to each given item; write both, and edits of the found one.

    The searches start at draws of the prior, the first in w at the mean style, and the best of `tries` is kept. The
    error stands beside that of the training items' mean: what a code that says nothing would leave.

    Args:
        space: "w": one style for all layers, as Karras et al. project.
        images: image files, made square by `crop`; None: items of the split.
        y: of a conditional prior: the class of all codes; None: the class is searched for too.
        weight: of the prior: the variance of a value's noise, in squared ranges of the data.
        edit: "interpolate" towards the next item's code, or an .npz of `genlab arithmetic`, whose direction is added.
        strengths: how far, in lengths of the way or the direction.

    Raises:
        UserError: the model does not decode, there is no such item or file, or the direction is of another space.
    """
    ready(run, "project")
    decode = queries.decoder(run, space)
    if images:
        x, index = given(run, images, crop), None
    else:
        held, index = queries.items(run, split, n, seed, items)
        x = held.x
    usual = queries.reference(run, split, seed, queries.one_class(run, y), space)  # (N, …)
    edits(usual[:1], edit, strengths)  # refuses now what it would refuse after the search
    torch.manual_seed(seed)
    first = drawn(usual, len(x) * tries)
    if space == "w":
        first[::tries] = usual.mean(0)
    low, high = run.spec.range if run.spec.kind == "image" else (x.min().item(), x.max().item())
    everything = torch.ones_like(x, dtype=torch.bool)
    how = {"usual": usual, "weight": weight, "steps": steps, "span": high - low, "first": first}
    z = searches(decode, x, everything, tries=tries, **how)[:, 0]  # (n, …)
    ways, names = edits(z, edit, strengths)  # (n, E, …)
    found = queries.through(decode, z)
    edited = (
        queries.through(decode, ways.flatten(0, 1)).unflatten(0, ways.shape[:2]) if names else None
    )

    usually = run.dataset.take("train", queries.DRAWS, seed=seed).x.to(x).mean(0)  # (*shape)
    record = {
        "space": space, "n": len(x), "images": images, "steps": steps, "tries": tries, "weight": weight, "edit": edit,
        "squared_error": queries.mean(queries.squared_error(x, found)),
        "squared_error_of_the_mean_item": queries.mean(queries.squared_error(x, usually.expand_as(x))),
        "psnr_db": queries.mean(queries.psnr(x, found, high - low)),
    }  # fmt: skip
    return queries.write(
        run, "project" + "_w" * (space == "w"), seed=seed, out=out, record=record,
        images={"": picture(x, found, edited, names, run.spec)},
        arrays={"index": index, "x": x, "found": found, "z": z, "edited": edited, "codes_of_edits": ways if names else None},
    )  # fmt: skip


def edits(z: Tensor, edit: str | None, strengths: tuple[float, ...]) -> tuple[Tensor, list[str]]:
    """Return the changed codes (n, E, …) of codes z (n, …), and a name for each change."""
    if edit is None:
        return z[:, None], []
    if edit == "interpolate":
        direction = z.roll(-1, 0) - z
    else:
        direction = direction_of(edit).to(z)
        if direction.shape != z.shape[1:]:
            raise UserError(f"edit={edit}: its direction has the shape {tuple(direction.shape)}, and these codes have "
                            f"{tuple(z.shape[1:])}; it must be of the same run and space")  # fmt: skip
    s = torch.tensor(strengths, dtype=z.dtype, device=z.device).view(1, -1, *[1] * (z.dim() - 1))
    return z[:, None] + s * (direction[:, None] if edit == "interpolate" else direction), [
        f"{v:+g}" for v in strengths
    ]


def direction_of(path: str) -> Tensor:
    """Return the direction in a file that `genlab arithmetic` wrote."""
    if not Path(path).is_file():
        raise UserError(
            f"edit={path}: there is no such file; give interpolate, or an .npz of genlab arithmetic"
        )
    held = read_arrays(Path(path), f"edit={path}")
    if "direction" not in held:
        raise UserError(
            f"edit={path} holds no direction; genlab arithmetic writes one, of b and c or of an attribute"
        )
    return torch.from_numpy(held["direction"])


def given(run: Run, images: list[str] | str, crop: Crop) -> Tensor:
    """Return image files as the model's data (n, *shape), on its device."""
    if run.spec.kind != "image":
        raise UserError(
            f"images=: {run.info['dataset']} has {run.spec.kind}; give items= of a split"
        )
    read = Reader(run.spec.shape[0], run.spec.shape[-1], crop)
    parts = []
    for path in [images] if isinstance(images, str) else images:
        try:
            parts.append(read(Path(path)))
        except BROKEN as error:
            raise UserError(f"images={path}: it cannot be read as an image") from error
    prepare = Preparation(
        range=run.spec.range, binarize="threshold" if run.spec.levels == 2 else "none"
    )
    like = next(run.model.parameters())
    return prepare(torch.stack(parts), torch.Generator()).to(like)


def picture(
    x: Tensor, found: Tensor, edited: Tensor | None, names: list[str], spec: Spec
) -> np.ndarray:
    """Return a row for each item: the item, what was found, and its changes; points as a scatter."""
    if spec.kind != "image":
        return image_grids.picture(found, spec, reals=x)
    whole = [x[:, None], found[:, None]] + ([] if edited is None else [edited])
    sheet = torch.cat(whole, 1)
    sheet = image_grids.grid(
        image_grids.to_bytes(sheet.flatten(0, 1), spec), columns=sheet.shape[1]
    )
    return image_grids.captioned(sheet, columns=["item", "found", *names])
