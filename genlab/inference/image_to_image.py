"""Translate images with a model: held-out pairs, or a folder of images of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from genlab.batching import map_batched
from genlab.config.recipes import list_recipes
from genlab.data import image_decoding
from genlab.data.degradations import Operator
from genlab.errors import UserError
from genlab.inference.queries import ItemSelection, select_items
from genlab.inference.results import (
    Results,
    describe_run,
    mean_with_error,
    print_measurements,
    write_record,
    write_results,
)
from genlab.metrics import psnr_ssim
from genlab.metrics.context import to_bytes
from genlab.metrics.paired_translation import (
    MEAN_ITEMS,
    make_baselines,
    similarity_per_item,
    translate_batched,
    why_no_lpips,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, DataSpec
from genlab.viz import image_grids

MAX_SHOWN = 10  # items in a picture
MAX_VIDEOS_SHOWN = 4
# Names of measures in a record, if they differ from those of the metric.
MEASURE_NAMES = {"psnr": "psnr_db", "squared_error": "squared_error_per_frame"}


@dataclass(frozen=True)
class Direction:
    """A direction of translation: the function, and the DataSpec of its output."""

    translate: Callable[[Tensor], Tensor]
    spec: DataSpec
    backward: bool = False

    def orient(self, batch: Batch) -> Batch:
        """Return a batch of the data for this direction; backward swaps sources and targets."""
        if not self.backward:
            return batch
        if batch.cond is None:
            raise ValueError("a batch without sources cannot be swapped")
        return Batch(batch.cond, None, batch.x)


def find_direction(run: LoadedRun, *, backward: bool = False) -> Direction:
    """Return the direction in which a run's model was trained, or the backward one.

    Raises:
        UserError: the model does not translate backward.
    """
    if not backward:
        return Direction(run.model.translate, run.spec)
    if not run.model.translates_backward:
        raise UserError(explain_one_direction(run))
    spec = replace(
        source_spec(run.spec),
        source=replace(run.spec, source=None, num_classes=0, task=""),
        task="translate",
    )
    return Direction(partial(run.model.translate, backward=True), spec, backward=True)


def explain_one_direction(run: LoadedRun) -> str:
    """Return the message for a model that does not translate backward."""
    names = ", ".join(
        recipe.name
        for recipe in list_recipes()
        if "translate" in recipe.abilities() and recipe.model.translates_backward
    )
    return (
        f"backward=true is for models that learn both directions ({names}), but {run.name} learns "
        "one; leave it out"
    )


def source_spec(spec: DataSpec) -> DataSpec:
    """Return the DataSpec of the sources of a translation."""
    if spec.source is None:
        raise UserError(f"data with task={spec.task or 'none'} does not have sources to translate")
    return spec.source


def upscaling_factor(spec: DataSpec) -> int:
    """Return how many times larger a target is than its source."""
    return spec.shape[-1] // source_spec(spec).shape[-1]


# --- held-out pairs -------------------------------------------------------------------------------


def translate_items(
    run: LoadedRun,
    command: str,
    selection: ItemSelection,
    *,
    output_dir: str | None,
    backward: bool = False,
) -> dict[str, Any]:
    """Translate the sources of the selected items; measure and write the targets."""
    direction = find_direction(run, backward=backward)
    selected, index = select_items(run, selection)
    batch, paired = direction.orient(selected), run.dataset.paired
    if batch.cond is None:
        raise ValueError("a batch without sources cannot be translated")
    torch.manual_seed(selection.seed)  # a generator may draw noise
    output = translate_batched(direction.translate, batch.cond, direction.spec)
    record: dict[str, Any] = {"task": direction.spec.task}
    record |= {"backward": True} if backward else {}
    record |= {"split": selection.split, "n": len(output)}
    if paired:
        mean_item = direction.orient(take_train_items(run, selection.seed)).x.mean(0)
        record |= measure_outputs(batch, output, direction.spec, mean_item)
    else:
        record["truth"] = f"none: {run.dataset_name} is not paired"
    results = Results(
        f"{command}_backward" if backward else command,
        selection.seed,
        record,
        images={"": render_translations(batch, output, direction.spec, paired=paired)},
        arrays={
            "index": index,
            "source": batch.cond,
            "output": output,
            "x": batch.x if paired else None,
        },
    )
    return write_results(run, results, output_dir)


def restore_items(
    run: LoadedRun,
    command: str,
    selection: ItemSelection,
    operator: Operator,
    *,
    output_dir: str | None,
) -> dict[str, Any]:
    """Degrade the selected items and restore them with a diffusion model."""
    batch, index = select_items(run, selection)
    batch.cond = operator(batch.x, torch.Generator())
    spec = replace(run.spec, source=operator.source_spec, task=command)
    torch.manual_seed(selection.seed)
    output = map_batched(
        lambda source: run.model.restore(source, operator.apply_unrounded), batch.cond
    )
    record = {"task": command, "method": "restore", "split": selection.split, "n": len(output)}
    record |= measure_outputs(batch, output, spec, take_train_items(run, selection.seed).x.mean(0))
    results = Results(
        command,
        selection.seed,
        record,
        images={"": render_translations(batch, output, spec, paired=True)},
        arrays={"index": index, "source": batch.cond, "output": output, "x": batch.x},
    )
    return write_results(run, results, output_dir)


def refuse_input_dir(run: LoadedRun, input_dir: str | None, purpose: str) -> None:
    """Refuse a folder of images for a model that was not trained to translate.

    Raises:
        UserError: a folder is given.
    """
    if input_dir is not None:
        raise UserError(
            f"input_dir= is for models trained to {purpose}; {run.name} works on items of its "
            "dataset"
        )


def take_train_items(run: LoadedRun, seed: int) -> Batch:
    """Return training items, whose mean is the simplest guess of a target."""
    batch: Batch = run.dataset.head("train", MEAN_ITEMS, seed=seed)
    return batch


def measure_outputs(
    batch: Batch, output: Tensor, spec: DataSpec, mean_item: Tensor
) -> dict[str, Any]:
    """Return the similarity of outputs, and of guesses without a model, with the truth.

    For super-resolution also that of the luminance, as papers report it.
    """
    record: dict[str, Any] = {}
    for guess, x in {"": output, **make_baselines(batch, spec, mean_item)}.items():
        suffix = guess and f"_{guess}"
        measured = {
            MEASURE_NAMES.get(name, name): values
            for name, values in similarity_per_item(x, batch.x, spec).items()
        }
        if spec.task == "superres":
            measured |= luminance_agreement(x, batch.x, spec)
        record |= {name + suffix: mean_with_error(values) for name, values in measured.items()}
    if reason := why_no_lpips(spec):
        record["lpips"] = f"not measured: {reason}"
    return record


def luminance_agreement(x: Tensor, truth: Tensor, spec: DataSpec) -> dict[str, Tensor]:
    """Return PSNR in dB and SSIM (N,) of the luminance without the border.

    A measure is left out if the images are too small for it.
    """
    x, truth = (to_bytes(part.cpu(), spec.range) for part in (x, truth))
    border = upscaling_factor(spec)
    inner = min(truth.shape[-2:]) - 2 * border
    found = {}
    if inner > 0:
        found["psnr_y"] = psnr_ssim.psnr_y(x, truth, crop=border)
    if inner >= psnr_ssim.SSIM_WINDOW:
        found["ssim_y"] = psnr_ssim.ssim(x, truth, crop=border)
    return found


def render_translations(
    batch: Batch, output: Tensor, spec: DataSpec, *, paired: bool
) -> np.ndarray:
    """Return rows of the first sources, the outputs, and, if the data is paired, the truth."""
    if batch.cond is None:
        raise ValueError("a batch without sources cannot be shown")
    n = MAX_VIDEOS_SHOWN if spec.kind == "video" else MAX_SHOWN
    parts = [(batch.cond[:n], source_spec(spec)), (output[:n], spec)]
    names = ["source", "output"]
    if paired:
        parts.append((batch.x[:n], spec))
        names.append("truth")
    return image_grids.make_comparison(parts, names)


def preview_translations(model: Any, dataset: Any, split: str, *, seed: int = 0) -> np.ndarray:
    """Translate the first few sources of a split, and return them as a picture."""
    n = MAX_VIDEOS_SHOWN if dataset.spec.kind == "video" else MAX_SHOWN
    batch = dataset.head(split, n, seed=seed)
    parameter = next(model.parameters())
    output = translate_batched(model.translate, batch.cond.to(parameter), dataset.spec)
    return render_translations(batch, output, dataset.spec, paired=dataset.paired)


# --- folders --------------------------------------------------------------------------------------


def translate_folder(
    run: LoadedRun,
    command: str,
    input_dir: str,
    *,
    seed: int,
    output_dir: str | None,
    downsample: bool = False,
    backward: bool = False,
) -> dict[str, Any]:
    """Translate each image of a folder and write the result under the image's name.

    Args:
        downsample: the images are the truth: make them smaller first, then measure the result.

    Raises:
        UserError: the model does not take gray or RGB images, or not images of these sizes.
    """
    direction, folder = find_direction(run, backward=backward), Path(input_dir).expanduser()
    spec, source = direction.spec, source_spec(direction.spec)
    command = f"{command}_backward" if backward else command
    require_plain_images(run, spec, source)
    output = Path(output_dir) if output_dir else run.folder.samples
    if not output_dir:
        output /= f"{command}_{folder.name}_step{run.step}"
    files, measured = psnr_ssim.images_by_stem(folder), dict[str, list[Tensor]]()
    torch.manual_seed(seed)
    for stem, path in files.items():
        image = read_image(path, source.shape[0])  # (1, C, H, W) uint8
        if downsample:
            image = crop_to_multiple(image, upscaling_factor(spec))
            small = psnr_ssim.bicubic(image, 1 / upscaling_factor(spec))
        else:
            small = image
        try:
            x = scale_to_range(run, small, source)
            translated = to_bytes(translate_padded(run, direction, x), spec.range)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        image_grids.save_png(translated[0].permute(1, 2, 0).numpy(), output / f"{stem}.png")
        if downsample:
            larger = psnr_ssim.bicubic(small, (image.shape[-2], image.shape[-1]))
            for suffix, x in (("", translated), ("_bicubic", larger)):
                for name, measure in (("psnr_y", psnr_ssim.psnr_y), ("ssim_y", psnr_ssim.ssim)):
                    values = measure(x, image, crop=upscaling_factor(spec))
                    measured.setdefault(name + suffix, []).append(values)
    record = describe_run(run, seed) | {"input_dir": str(folder), "task": spec.task}
    record |= {"n": len(files)}
    record |= {"backward": True} if backward else {}
    record |= {"downsample": True} if downsample else {}
    for name, parts in measured.items():
        record[name] = mean_with_error(torch.cat(parts))
        record[f"{name}_per_image"] = dict(zip(files, torch.cat(parts).tolist(), strict=True))
    print_measurements(record)
    write_record(record, output / f"{command}.json")
    print(f"{len(files):,} images in {output}")
    return record


def require_plain_images(run: LoadedRun, spec: DataSpec, source: DataSpec) -> None:
    """Refuse a folder of images for a model whose sources are not gray or RGB images."""
    if spec.kind == "image" and source.kind == "image" and source.shape[0] in (1, 3):
        return
    hint = "; genlab inpaint marks the hidden part of an image" if spec.task == "inpaint" else ""
    raise UserError(
        "input_dir= is for models whose sources are gray or RGB images; "
        f"{run.name} takes {source.kind} {source.shape}{hint}"
    )


def crop_to_multiple(image: Tensor, factor: int) -> Tensor:
    """Return images (N, C, H, W) cropped at the bottom and right to sides that are multiples."""
    height, width = (side - side % factor for side in image.shape[-2:])
    return image[..., :height, :width]


def scale_to_range(run: LoadedRun, image: Tensor, spec: DataSpec) -> Tensor:
    """Return byte images in a DataSpec's range, on the run's device in the model's dtype."""
    low, high = spec.range
    dtype = next(run.model.parameters()).dtype
    return image.to(run.device.torch, dtype) / 255 * (high - low) + low


@torch.no_grad()
def translate_padded(run: LoadedRun, direction: Direction, x: Tensor) -> Tensor:
    """Translate sources (N, C, H, W) of any size to targets (N, C', H', W'), on the CPU.

    The border of a source is replicated until the sides are multiples of the model's
    `size_multiple`, and the output is cropped. A `size_multiple` of 0 allows one size only.

    Raises:
        UserError: the model takes one size, and this is another.
    """
    source, target = source_spec(direction.spec), direction.spec
    height, width = x.shape[-2:]
    multiple = run.model.size_multiple
    if not multiple and (height, width) != source.shape[1:]:
        raise UserError(
            f"{run.name} takes sources of {source.shape[2]}×{source.shape[1]} only, but this image "
            f"has {width}×{height}; resize it, or train with another preprocess.size"
        )
    bottom, right = (-side % multiple if multiple else 0 for side in (height, width))
    padded = pad(x, (0, right, 0, bottom), mode="replicate")
    translated = direction.translate(padded).float().cpu()
    rows = height * target.shape[1] // source.shape[1]
    columns = width * target.shape[2] // source.shape[2]
    return translated[..., :rows, :columns]


def read_image(path: Path, channels: int) -> Tensor:
    """Return an image file as bytes (1, C, H, W), gray or RGB, with transparency over white.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return image_decoding.read_image(path, channels).unsqueeze(0)
    except image_decoding.DECODE_ERRORS as error:
        raise UserError(f"unreadable image {path}: {' '.join(str(error).split())}") from error
