"""genlab translate: translate held-out sources, the images of a folder, or a film."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.commands.sample import validated_class_numbers
from genlab.config.recipes import nearest_recipes_with
from genlab.errors import UserError
from genlab.inference.film_translation import (
    refuse_film_beside_folder,
    refuse_input_file,
    translate_film,
)
from genlab.inference.image_to_image import (
    MAX_SHOWN,
    explain_no_backward_translation,
    refuse_input_dir,
    translate_folder,
    translate_selected_items,
)
from genlab.inference.items_and_codes import (
    ItemSelection,
    Split,
    load_selected_items_and_indices,
    squared_error_per_item,
)
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, Fraction, Positive
from genlab.viz import item_pictures

DEFAULT_STRENGTH = 0.6  # of an edit


def translate(
    run: LoadedRun,
    *,
    input_dir: str | None = None,
    input_file: str | None = None,
    backward: bool = False,
    strength: Fraction | None = None,
    label: ClassNumber | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Translate n sources of a split (None: all), those listed, a folder or a film.

    The outputs for items of a split are measured against the truth.

    Args:
        input_dir: a folder of images of any size; each result is written under the image's name.
        input_file: a film, such as an animated GIF; the result is a GIF with the same times.
        backward: translate targets to sources, with a model that learned both directions.
        strength: for a diffusion model (SDEdit): the fraction of the way to noise from which each
            source is drawn again, 0 (unchanged) to 1 (forgotten); None is 0.6.
        label: for a conditional diffusion model, the class of the result.

    Raises:
        UserError: the model does not translate, not in that direction, or not images of these
            sizes.
    """
    request = CommandRequest.from_command_call(translate, [run], locals())
    selection = ItemSelection(n, items, split, seed)
    if "translate" not in require_command_support(run, "translate"):
        if backward:
            raise UserError(explain_no_backward_translation(run))
        refuse_input_dir(run, input_dir, "translate")
        refuse_input_file(run, input_file, "translate")
        strength = DEFAULT_STRENGTH if strength is None else strength
        return edit_items_by_sdedit(run, request, selection, strength, label, output_dir=output_dir)
    if strength is not None or label is not None:
        raise UserError(
            "strength= and label= are for diffusion models "
            f"({', '.join(nearest_recipes_with('edit', run.spec.kind))}); "
            f"{run.name} was trained to translate"
        )
    refuse_film_beside_folder(input_dir, input_file)
    if input_file is not None:
        return translate_film(
            run, request, input_file, seed=seed, output_dir=output_dir, backward=backward
        )
    if input_dir is not None:
        return translate_folder(
            run, request, input_dir, seed=seed, output_dir=output_dir, backward=backward
        )
    return translate_selected_items(
        run, request, selection, output_dir=output_dir, backward=backward
    )


def edit_items_by_sdedit(
    run: LoadedRun,
    request: CommandRequest,
    selection: ItemSelection,
    strength: float,
    label: int | None,
    *,
    output_dir: str | None,
) -> dict[str, Any]:
    """Add noise to the selected items and denoise them again (SDEdit), with a diffusion model."""
    label = next(iter(validated_class_numbers(run, label)), None)
    batch, index = load_selected_items_and_indices(run, selection)
    torch.manual_seed(selection.seed)

    def edit(x: Tensor) -> Tensor:
        y = None if label is None else torch.full((len(x),), label, device=x.device)
        edited: Tensor = run.model.edit(x, strength, y)
        return edited

    output = map_batched(edit, batch.x)
    record = {
        "method": "edit",
        "strength": strength,
        "label": label,
        "split": selection.split,
        "n": len(output),
        "squared_error_to_source": mean_and_error_dict(squared_error_per_item(batch.x, output)),
    }
    parts = [(batch.x[:MAX_SHOWN], run.spec), (output[:MAX_SHOWN], run.spec)]
    results = Results(
        f"translate_{strength:g}",
        selection.seed,
        record,
        images={"": item_pictures.make_comparison_picture(parts, ["source", "output"])},
        arrays={"index": index, "source": batch.x, "output": output, "y": batch.y},
    )
    return write_results(run, request, results, output_dir)
