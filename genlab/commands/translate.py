"""genlab translate: translate held-out sources, or the images of a folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.commands.sample import check_labels
from genlab.config.recipes import models_with
from genlab.errors import UserError
from genlab.inference.image_to_image import (
    MAX_SHOWN,
    explain_one_direction,
    refuse_input_dir,
    translate_folder,
    translate_items,
)
from genlab.inference.queries import ItemSelection, Split, select_items, squared_error
from genlab.inference.requirements import require_command
from genlab.inference.results import Results, mean_with_error, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Fraction, Positive
from genlab.viz import image_grids

DEFAULT_STRENGTH = 0.6  # of an edit


def translate(
    run: LoadedRun,
    *,
    input_dir: str | None = None,
    backward: bool = False,
    strength: Fraction | None = None,
    label: Count | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Translate n sources of a split (None: all), those listed, or the images of a folder.

    The outputs for items of a split are measured against the truth.

    Args:
        input_dir: a folder of images of any size; each result is written under the image's name.
        backward: translate targets to sources, with a model that learned both directions.
        strength: for a diffusion model (SDEdit): the fraction of the way to noise from which each
            source is drawn again, 0 (unchanged) to 1 (forgotten); None is 0.6.
        label: for a conditional diffusion model, the class of the result.

    Raises:
        UserError: the model does not translate, not in that direction, or not images of these
            sizes.
    """
    selection = ItemSelection(n, items, split, seed)
    if "translate" not in require_command(run, "translate"):
        if backward:
            raise UserError(explain_one_direction(run))
        refuse_input_dir(run, input_dir, "translate")
        strength = DEFAULT_STRENGTH if strength is None else strength
        return edit_items(run, selection, strength, label, output_dir=output_dir)
    if strength is not None or label is not None:
        raise UserError(
            f"strength= and label= are for diffusion models ({', '.join(models_with('edit'))}); "
            f"{run.name} was trained to translate"
        )
    if input_dir is not None:
        return translate_folder(
            run, "translate", input_dir, seed=seed, output_dir=output_dir, backward=backward
        )
    return translate_items(run, "translate", selection, output_dir=output_dir, backward=backward)


def edit_items(
    run: LoadedRun,
    selection: ItemSelection,
    strength: float,
    label: int | None,
    *,
    output_dir: str | None,
) -> dict[str, Any]:
    """Add noise to the selected items and denoise them again (SDEdit), with a diffusion model."""
    label = next(iter(check_labels(run, label)), None)
    batch, index = select_items(run, selection)
    torch.manual_seed(selection.seed)

    def edit(x: Tensor) -> Tensor:
        y = None if label is None else torch.full((len(x),), label, device=x.device)
        edited: Tensor = run.model.edit(x, strength, y)
        return edited

    output = map_batched(edit, batch.x)
    record = {
        "method": "edit",
        "strength": strength,
        "split": selection.split,
        "n": len(output),
        "squared_error_to_source": mean_with_error(squared_error(batch.x, output)),
    }
    parts = [(batch.x[:MAX_SHOWN], run.spec), (output[:MAX_SHOWN], run.spec)]
    results = Results(
        f"translate_{strength:g}" + ("" if label is None else f"_y{label}"),
        selection.seed,
        record,
        images={"": image_grids.make_comparison(parts, ["source", "output"])},
        arrays={"index": index, "source": batch.x, "output": output, "y": batch.y},
    )
    return write_results(run, results, output_dir)
