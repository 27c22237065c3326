"""genlab colorize: color gray images, with a model trained to, or with a diffusion model."""

from __future__ import annotations

from typing import Any

from genlab.data.degradations import Operator
from genlab.inference.film_translation import (
    refuse_film_beside_folder,
    refuse_input_file,
    translate_film,
)
from genlab.inference.image_to_image import (
    degrade_and_restore_items,
    refuse_input_dir,
    translate_folder,
    translate_selected_items,
)
from genlab.inference.items_and_codes import ItemSelection, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive


def colorize(
    run: LoadedRun,
    *,
    input_dir: str | None = None,
    input_file: str | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Color the gray sources of n items (None: all), those listed, a folder or a film.

    A diffusion model was not trained for it; it restores the colors of gray versions of its data
    versions.

    Raises:
        UserError: the model does not color images, or not images of these sizes.
    """
    request = CommandRequest.from_command_call(colorize, [run], locals())
    selection = ItemSelection(n, items, split, seed)
    if "translate" not in require_command_support(run, "colorize"):
        refuse_input_dir(run, input_dir, "colorize")
        refuse_input_file(run, input_file, "colorize")
        operator = Operator(
            name="gray", spec=run.spec, factor=2, sigma=0.0, mask="box", mask_ratio=0.5
        )
        return degrade_and_restore_items(run, request, selection, operator, output_dir=output_dir)
    refuse_film_beside_folder(input_dir, input_file)
    if input_file is not None:
        return translate_film(run, request, input_file, seed=seed, output_dir=output_dir)
    if input_dir is not None:
        return translate_folder(run, request, input_dir, seed=seed, output_dir=output_dir)
    return translate_selected_items(run, request, selection, output_dir=output_dir)
