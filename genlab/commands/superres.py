"""genlab superres: enlarge images, with a model trained to, or with a diffusion model."""

from __future__ import annotations

from typing import Any

from genlab.data.degradations import Operator
from genlab.errors import UserError
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
    upscaling_factor,
)
from genlab.inference.items_and_codes import ItemSelection, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive

DEFAULT_FACTOR = 2  # by which a diffusion model's items are made smaller


def superres(
    run: LoadedRun,
    *,
    input_dir: str | None = None,
    input_file: str | None = None,
    downsample: bool = False,
    factor: Positive | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Enlarge the sources of n items (None: all), those listed, a folder or a film.

    A diffusion model was not trained for it; it restores its own data from smaller versions.

    Args:
        downsample: the images of the folder are the truth: make them smaller first, and measure the
            result beside bicubic interpolation.
        factor: for a diffusion model, how many times smaller its items are made; None is 2.

    Raises:
        UserError: the model does not enlarge images, not images of these sizes, or `downsample` is
            given without a folder.
    """
    is_trained = "translate" in require_command_support(run, "superres")
    if factor is not None and is_trained:
        raise UserError(
            f"factor= is for diffusion models; {run.name} was trained to enlarge "
            f"{upscaling_factor(run.spec)} times"
        )
    if downsample and input_dir is None:
        raise UserError(
            "downsample=true makes the images of a folder smaller: give input_dir=<folder>"
        )
    request = CommandRequest.from_command_call(superres, [run], locals())
    selection = ItemSelection(n, items, split, seed)
    if not is_trained:
        refuse_input_dir(run, input_dir, "enlarge images")
        refuse_input_file(run, input_file, "enlarge images")
        operator = Operator(
            name="downsample",
            spec=run.spec,
            factor=factor or DEFAULT_FACTOR,
            sigma=0.0,
            mask="box",
            mask_ratio=0.5,
        )
        return degrade_and_restore_items(run, request, selection, operator, output_dir=output_dir)
    refuse_film_beside_folder(input_dir, input_file)
    if input_file is not None:
        return translate_film(run, request, input_file, seed=seed, output_dir=output_dir)
    if input_dir is not None:
        return translate_folder(
            run, request, input_dir, seed=seed, output_dir=output_dir, downsample=downsample
        )
    return translate_selected_items(run, request, selection, output_dir=output_dir)
