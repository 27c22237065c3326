"""genlab denoise: add noise to held-out items, and let the model remove it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.corruptions import NoiseKind, add_noise, noise_level_unit
from genlab.inference.image_to_image import translate_folder
from genlab.inference.items_and_codes import ItemSelection, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, DataSpec, NonNegative, Positive
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture

MAX_SHOWN = 10  # items in a picture
DEFAULT_LEVEL = 0.3  # of the noise, for models that were not trained at one level


def denoise(
    run: LoadedRun,
    *,
    input_dir: str | None = None,
    noise: NoiseKind = "gaussian",
    level: NonNegative | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Add noise to n items (None: all), or those listed, denoise them, and measure both.

    Args:
        input_dir: a folder of noisy images of any size, for models that were trained to denoise;
            each result is written under the name of its image.
        noise: "gaussian" with standard deviation `level` in ranges of the data; "masking" sets a
            fraction `level` of the values to the lowest; "salt_and_pepper" to the lowest or
            highest.
        level: None is the level that a translator was trained for, else 0.3.

    Raises:
        UserError: the model does not denoise, an item does not exist, the fraction is above 1, or
            noise is requested for images that are already noisy.
    """
    request = CommandRequest.from_command_call(denoise, [run], locals())
    has_ability = "denoise" in require_command_support(run, "denoise")
    if input_dir is not None:
        if has_ability:
            raise UserError(
                "input_dir= is for models trained with dataset=pairs dataset.operator=noise; "
                f"{run.name} denoises items of its dataset"
            )
        if level is not None or noise != "gaussian":
            raise UserError(
                "the images of input_dir= are noisy already; leave noise= and level= out"
            )
        return translate_folder(run, request, input_dir, seed=seed, output_dir=output_dir)
    level = default_noise_level(run) if level is None else level
    if noise != "gaussian" and level > 1:
        raise UserError(f"level={level:g}: for {noise} it is a fraction of the values, at most 1")
    remove = make_denoise_function(run, noise, level) if has_ability else run.model.translate
    batch, index = items_and_codes.load_selected_items_and_indices(
        run, ItemSelection(n, items, split, seed)
    )
    torch.manual_seed(seed)
    x = batch.x
    noisy = add_noise(x, run.spec, noise, level)
    denoised = map_batched(remove, noisy)
    record = {
        "noise": noise,
        "level": level,
        "split": split,
        "n": len(x),
        "squared_error_before": mean_and_error_dict(
            items_and_codes.squared_error_per_item(x, noisy)
        ),
        "squared_error_after": mean_and_error_dict(
            items_and_codes.squared_error_per_item(x, denoised)
        ),
    }
    if run.spec.kind == "image":
        data_range = items_and_codes.value_range_length(x, run)
        record["psnr_db_before"] = mean_and_error_dict(
            items_and_codes.finite_psnr_per_item(x, noisy, data_range)
        )
        record["psnr_db_after"] = mean_and_error_dict(
            items_and_codes.finite_psnr_per_item(x, denoised, data_range)
        )
    results = Results(
        f"denoise_{noise}{level:g}",
        seed,
        record,
        images={"": render_denoising(x, noisy, denoised, run.spec)},
        arrays={"index": index, "y": batch.y, "x": x, "noisy": noisy, "denoised": denoised},
        items={"denoised": (), "noisy": (), "x": ()},
    )
    return write_results(run, request, results, output_dir)


def make_denoise_function(
    run: LoadedRun, noise: NoiseKind, level: float
) -> Callable[[Tensor], Tensor]:
    """Return the model's `denoise` for a kind and a level of noise.

    Raises:
        UserError: the model removes Gaussian noise only.
    """
    if run.model.gaussian_noise_only and noise != "gaussian":
        raise UserError(
            f"noise={noise}: {run.name} removes Gaussian noise only; set noise=gaussian"
        )
    sigma = level * noise_level_unit(run.spec) if noise == "gaussian" else None
    return partial(run.model.denoise, sigma=sigma)


def default_noise_level(run: LoadedRun) -> float:
    """Return the level of the noise in the run's training data, or 0.3 without any."""
    if run.spec.task != "denoise":
        return DEFAULT_LEVEL
    return float(run.config["dataset"]["sigma"])


def render_denoising(x: Tensor, noisy: Tensor, denoised: Tensor, spec: DataSpec) -> Picture:
    """Return rows of items, noisy items and denoised items; points as a scatter plot."""
    if spec.kind != "image":
        return item_pictures.render_items_as_picture(denoised, spec, reals=x, name="denoised")
    shown = torch.cat([part[:MAX_SHOWN] for part in (x, noisy, denoised)])
    pixels = item_pictures.to_uint8_images(shown, spec)
    rows = ["item", "with noise", "denoised"]
    return make_picture(pixels, columns=min(MAX_SHOWN, len(x)), row_names=rows)
