"""genlab project: find the code of an item by gradient descent, and edit the item.

Zhu et al. 2016, https://arxiv.org/abs/1609.03552, section 3; Karras et al. 2020,
https://arxiv.org/abs/1912.04958, section 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.data.image_decoding import DECODE_ERRORS, Crop, ImageDecoder
from genlab.data.npy_files import read_numpy_arrays
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.items_and_codes import ItemSelection, Space, Split
from genlab.inference.latent_search import (
    LatentSearch,
    optimize_codes_with_restarts,
    resample_codes,
)
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.nn.broadcast import expand_like
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, DataSpec, NonNegative, Positive
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture


def project(
    run: LoadedRun,
    *,
    space: Space = "z",
    images: list[str] | str | None = None,
    crop: Crop = "center",
    n: Positive = 6,
    items: list[Count] | None = None,
    split: Split = "test",
    label: ClassNumber | None = None,
    steps: Positive = 500,
    tries: Positive = 3,
    prior_weight: NonNegative = 0.001,
    edit: str | None = None,
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0),
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Find the code with the smallest squared error for each item, and edit it.

    Each search starts at a draw from the prior (in w the first starts at the mean style), and the
    best of `tries` is kept. The error of the training items' mean is given for comparison: that of
    a code that says nothing about the item.

    Args:
        space: "w" searches for one style for all layers, as Karras et al. do.
        images: image files, made square by `crop`; None takes items of the split.
        label: for a conditional prior, the class of all codes; None searches for the class too.
        prior_weight: the variance of the noise on a value, in squared ranges of the data.
        edit: "interpolate" moves toward the code of the next item; an .npz file of `genlab
            arithmetic` adds its direction.
        strengths: how far to move, in lengths of the path or the direction.

    Raises:
        UserError: the model does not decode, an item or file does not exist, or the direction
            belongs to another space.
    """
    request = CommandRequest.from_command_call(project, [run], locals())
    require_command_support(run, "project")
    decode = items_and_codes.decoder_of_code_space(run, space)
    index = None
    if images:
        x = read_images_as_model_input(run, images, crop)
    else:
        batch, index = items_and_codes.load_selected_items_and_indices(
            run, ItemSelection(n, items, split, seed)
        )
        x = batch.x
    prior_label = items_and_codes.prior_label_or_default(run, label)
    reference = items_and_codes.prior_or_encoded_codes(
        run, split=split, seed=seed, label=prior_label, space=space
    )  # (N, …)
    edit_codes_and_name_edits(
        reference[:1], edit, strengths
    )  # refuses a wrong edit before the search
    torch.manual_seed(seed)
    start = resample_codes(reference, len(x) * tries)
    if space == "w":
        start[::tries] = reference.mean(0)
    data_range = items_and_codes.value_range_length(x, run)
    known = torch.ones_like(x, dtype=torch.bool)
    search = LatentSearch(reference, prior_weight, steps, data_range)
    z = optimize_codes_with_restarts(decode, x, known, search, tries=tries, start=start)[
        :, 0
    ]  # (n, …)
    found = map_batched(decode, z)
    edited_z, names = edit_codes_and_name_edits(z, edit, strengths)  # (n, E, …)
    edited = None
    if names:
        edited = map_batched(decode, edited_z.flatten(0, 1)).unflatten(0, edited_z.shape[:2])

    train = run.dataset.head("train", items_and_codes.REFERENCE_CODES, seed=seed).x
    mean_item = train.to(x).mean(0).expand_as(x)
    record = {
        "space": space,
        "n": len(x),
        "images": images,
        "steps": steps,
        "tries": tries,
        "prior_weight": prior_weight,
        "edit": edit,
        "squared_error": mean_and_error_dict(items_and_codes.squared_error_per_item(x, found)),
        "squared_error_of_mean_item": mean_and_error_dict(
            items_and_codes.squared_error_per_item(x, mean_item)
        ),
        "psnr_db": mean_and_error_dict(items_and_codes.finite_psnr_per_item(x, found, data_range)),
    }
    results = Results(
        "project" + ("_w" if space == "w" else ""),
        seed,
        record,
        images={"": render_projections(x, found, edited, names, run.spec)},
        arrays={
            "index": index,
            "x": x,
            "found": found,
            "z": z,
            "edited": edited,
            "edited_z": edited_z if names else None,
        },
        items={"found": (), "edited": ("item", "strength"), "x": ()},
    )
    return write_results(run, request, results, output_dir)


def edit_codes_and_name_edits(
    z: Tensor, edit: str | None, strengths: tuple[float, ...]
) -> tuple[Tensor, list[str]]:
    """Return the edited codes (n, E, …) of codes z (n, …), and a name for each edit.

    Raises:
        UserError: the file of a direction is missing, or the direction has another shape.
    """
    if edit is None:
        return z[:, None], []
    if edit == "interpolate":
        direction = (z.roll(-1, 0) - z)[:, None]
    else:
        direction = read_code_direction(edit).to(z)
        if direction.shape != z.shape[1:]:
            raise UserError(
                f"edit={edit}: its direction has the shape {tuple(direction.shape)}, but these "
                f"codes have {tuple(z.shape[1:])}; it must come from the same run and space"
            )
    start = z[:, None]
    s = torch.tensor(strengths, dtype=z.dtype, device=z.device)
    return start + expand_like(s[None], start) * direction, [f"{v:+g}" for v in strengths]


def read_code_direction(path: str) -> Tensor:
    """Return the direction in a file that `genlab arithmetic` wrote.

    Raises:
        UserError: the file does not exist, or does not contain a direction.
    """
    if not Path(path).is_file():
        raise UserError(
            f"edit={path}: the file does not exist; give interpolate, or an .npz of "
            "genlab arithmetic"
        )
    arrays = read_numpy_arrays(Path(path), f"edit={path}")
    if "direction" not in arrays:
        raise UserError(
            f"edit={path} contains no direction; genlab arithmetic writes one, of b and c or of an "
            "attribute"
        )
    direction = torch.from_numpy(arrays["direction"]).float()
    if not direction.isfinite().all():
        raise UserError(f"edit={path}: its direction has numbers that are not finite")
    return direction


def read_images_as_model_input(run: LoadedRun, images: list[str] | str, crop: Crop) -> Tensor:
    """Return image files as the model's data (n, *shape), on its device.

    Raises:
        UserError: the data is not images, or a file cannot be read.
    """
    if run.spec.kind != "image":
        raise UserError(
            f"images= is for images, but {run.dataset_name} has {run.spec.kind}; give items= of a "
            "split"
        )
    read = ImageDecoder(run.spec.shape[0], run.spec.shape[-1], crop)
    parts = []
    for path in [images] if isinstance(images, str) else images:
        try:
            parts.append(read(Path(path)))
        except DECODE_ERRORS as error:
            raise UserError(f"images={path}: it cannot be read as an image") from error
    parameter = next(run.model.parameters())
    pixels = torch.stack(parts)
    if run.spec.levels == 2:
        pixels = pixels.gt(127).mul(255)
    return run.spec.from_bytes(pixels.float()).to(parameter)


def render_projections(
    x: Tensor, found: Tensor, edited: Tensor | None, names: list[str], spec: DataSpec
) -> Picture:
    """Return a row for each item: the item, what was found, and its edits."""
    if spec.kind != "image":
        return item_pictures.render_items_as_picture(found, spec, reals=x, name="found")
    columns = [x[:, None], found[:, None]] + ([] if edited is None else [edited])
    cells = torch.cat(columns, 1)
    pixels = item_pictures.to_uint8_images(cells.flatten(0, 1), spec)
    column_names = ["item", "found", *names]
    note = "items and the nearest images that the model can make"
    return make_picture(pixels, columns=cells.shape[1], column_names=column_names, note=note)
