"""Translate images with a model: held-out pairs, or a folder of images of any size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from genlab.batching import map_batched
from genlab.config.recipes import list_recipes
from genlab.console import track
from genlab.data import image_decoding
from genlab.data.degradations import Operator
from genlab.data.image_files import is_hidden_or_system_name, one_line_error_message
from genlab.data.pixel_ranges import find_pixel_ranges
from genlab.data.summary import LeftOut
from genlab.errors import UserError
from genlab.inference.items_and_codes import ItemSelection, load_selected_items_and_indices
from genlab.inference.output_files import CommandRequest, OutputFolder
from genlab.inference.results import (
    Results,
    mean_and_error_dict,
    print_mean_and_error_table,
    run_record_fields,
    write_results,
)
from genlab.metrics import psnr_ssim
from genlab.metrics.paired_translation import (
    MEAN_ITEMS,
    make_baseline_translations,
    reason_without_lpips,
    similarities_per_item,
    translate_in_batches,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, DataSpec
from genlab.viz import item_pictures
from genlab.viz.picture import Picture

MAX_SHOWN = 10  # items in a picture
MAX_VIDEOS_SHOWN = 4
# Names of measures in a record, if they differ from those of the metric.
MEASURE_NAMES = {"psnr": "psnr_db", "squared_error": "squared_error_per_frame"}


@dataclass(frozen=True)
class TranslationDirection:
    """A direction of translation: the function, and the DataSpec of its output."""

    translate: Callable[[Tensor], Tensor]
    spec: DataSpec
    backward: bool = False

    def swap_sources_if_backward(self, batch: Batch) -> Batch:
        """Return a batch of the data for this direction; backward swaps sources and targets."""
        if not self.backward:
            return batch
        if batch.cond is None:
            raise ValueError("a batch without sources cannot be swapped")
        return Batch(batch.cond, None, batch.x)


def make_translation_direction(run: LoadedRun, *, backward: bool = False) -> TranslationDirection:
    """Return the direction in which a run's model was trained, or the backward one.

    Raises:
        UserError: the model does not translate backward.
    """
    if not backward:
        return TranslationDirection(run.model.translate, run.spec)
    if not run.model.translates_backward:
        raise UserError(explain_no_backward_translation(run))
    spec = replace(
        spec_of_sources(run.spec),
        source=replace(run.spec, source=None, num_classes=0, class_names=(), task=""),
        task="translate",
    )
    return TranslationDirection(partial(run.model.translate, backward=True), spec, backward=True)


def explain_no_backward_translation(run: LoadedRun) -> str:
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


def spec_of_sources(spec: DataSpec) -> DataSpec:
    """Return the DataSpec of the sources of a translation."""
    if spec.source is None:
        raise UserError(f"data with task={spec.task or 'none'} does not have sources to translate")
    return spec.source


def upscaling_factor(spec: DataSpec) -> int:
    """Return how many times larger a target is than its source."""
    return spec.shape[-1] // spec_of_sources(spec).shape[-1]


# --- held-out pairs -------------------------------------------------------------------------------


def translate_selected_items(
    run: LoadedRun,
    request: CommandRequest,
    selection: ItemSelection,
    *,
    output_dir: str | None,
    backward: bool = False,
) -> dict[str, Any]:
    """Translate the sources of the selected items; measure and write the targets."""
    direction = make_translation_direction(run, backward=backward)
    selected, index = load_selected_items_and_indices(run, selection)
    batch, paired = direction.swap_sources_if_backward(selected), run.dataset.paired
    if batch.cond is None:
        raise ValueError("a batch without sources cannot be translated")
    torch.manual_seed(selection.seed)  # a generator may draw noise
    output = translate_in_batches(direction.translate, batch.cond, direction.spec)
    record: dict[str, Any] = {"task": direction.spec.task}
    record |= {"backward": True} if backward else {}
    record |= {"split": selection.split, "n": len(output)}
    if paired:
        mean_item = direction.swap_sources_if_backward(
            load_train_items_for_mean(run, selection.seed)
        ).x.mean(0)
        record |= measure_outputs_and_baselines(batch, output, direction.spec, mean_item)
    else:
        record["truth"] = f"none: {run.dataset_name} is not paired"
    results = Results(
        f"{request.command}_backward" if backward else request.command,
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
    return write_results(run, request, results, output_dir)


def degrade_and_restore_items(
    run: LoadedRun,
    request: CommandRequest,
    selection: ItemSelection,
    operator: Operator,
    *,
    output_dir: str | None,
) -> dict[str, Any]:
    """Degrade the selected items and restore them with a diffusion model."""
    batch, index = load_selected_items_and_indices(run, selection)
    batch.cond = operator(batch.x, torch.Generator())
    spec = replace(run.spec, source=operator.source_spec, task=request.command)
    torch.manual_seed(selection.seed)
    output = map_batched(
        lambda source: run.model.restore(source, operator.apply_unrounded), batch.cond
    )
    record: dict[str, Any] = {"task": request.command, "method": "restore"}
    record |= {"split": selection.split, "n": len(output)}
    record |= measure_outputs_and_baselines(
        batch, output, spec, load_train_items_for_mean(run, selection.seed).x.mean(0)
    )
    results = Results(
        request.command,
        selection.seed,
        record,
        images={"": render_translations(batch, output, spec, paired=True)},
        arrays={"index": index, "source": batch.cond, "output": output, "x": batch.x},
    )
    return write_results(run, request, results, output_dir)


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


def load_train_items_for_mean(run: LoadedRun, seed: int) -> Batch:
    """Return training items, whose mean is the simplest guess of a target."""
    batch: Batch = run.dataset.head("train", MEAN_ITEMS, seed=seed)
    return batch


def measure_outputs_and_baselines(
    batch: Batch, output: Tensor, spec: DataSpec, mean_item: Tensor
) -> dict[str, Any]:
    """Return the similarity of outputs, and of guesses without a model, with the truth.

    For super-resolution also that of the luminance, as papers report it.
    """
    record: dict[str, Any] = {}
    for guess, x in {"": output, **make_baseline_translations(batch, spec, mean_item)}.items():
        suffix = guess and f"_{guess}"
        measured = {
            MEASURE_NAMES.get(name, name): values
            for name, values in similarities_per_item(x, batch.x, spec).items()
        }
        if spec.task == "superres":
            measured |= luminance_psnr_and_ssim(x, batch.x, spec)
        record |= {name + suffix: mean_and_error_dict(values) for name, values in measured.items()}
    if reason := reason_without_lpips(spec):
        record["lpips"] = f"not measured: {reason}"
    return record


def luminance_psnr_and_ssim(x: Tensor, truth: Tensor, spec: DataSpec) -> dict[str, Tensor]:
    """Return PSNR in dB and SSIM (N,) of the luminance without the border.

    A measure is left out if the images are too small for it.

    Args:
        x, truth: images in the range of `spec`, or bytes uint8.
    """
    x, truth = (
        part if part.dtype == torch.uint8 else spec.to_bytes(part.cpu()) for part in (x, truth)
    )
    border = upscaling_factor(spec)
    inner = min(truth.shape[-2:]) - 2 * border
    found = {}
    if inner > 0:
        found["psnr_y"] = psnr_ssim.psnr_y(x, truth, crop=border)
    if inner >= psnr_ssim.SSIM_WINDOW:
        found["ssim_y"] = psnr_ssim.ssim(x, truth, crop=border)
    return found


def render_translations(batch: Batch, output: Tensor, spec: DataSpec, *, paired: bool) -> Picture:
    """Return rows of the first sources, the outputs, and, if the data is paired, the truth."""
    if batch.cond is None:
        raise ValueError("a batch without sources cannot be shown")
    n = MAX_VIDEOS_SHOWN if spec.kind == "video" else MAX_SHOWN
    parts = [(batch.cond[:n], spec_of_sources(spec)), (output[:n], spec)]
    names = ["source", "output"]
    if paired:
        parts.append((batch.x[:n], spec))
        names.append("truth")
    return item_pictures.make_comparison_picture(parts, names)


def preview_translations(model: Any, dataset: Any, split: str, *, seed: int = 0) -> Picture:
    """Translate the first few sources of a split, and return them as a picture."""
    n = MAX_VIDEOS_SHOWN if dataset.spec.kind == "video" else MAX_SHOWN
    batch = dataset.head(split, n, seed=seed)
    parameter = next(model.parameters())
    output = translate_in_batches(model.translate, batch.cond.to(parameter), dataset.spec)
    return render_translations(batch, output, dataset.spec, paired=dataset.paired)


# --- folders --------------------------------------------------------------------------------------


def translate_folder(
    run: LoadedRun,
    request: CommandRequest,
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
    direction, folder = (
        make_translation_direction(run, backward=backward),
        Path(input_dir).expanduser(),
    )
    spec, source = direction.spec, spec_of_sources(direction.spec)
    require_gray_or_rgb_model(run, spec, source)
    files, measured = psnr_ssim.find_images_by_stem(folder), dict[str, dict[str, float]]()
    inputs = FolderImageReader(folder, files, source.shape[0], run)
    names = [f"{stem}.png" for stem in files]
    answer = OutputFolder.choose_folder(
        request,
        f"{request.command}_backward" if backward else request.command,
        source=folder,
        output_dir=output_dir,
        default_parent=run.folder.samples,
        names=names,
    )
    torch.manual_seed(seed)
    for stem, path in track(files.items(), "translating", unit="images"):
        if (image := inputs.read_image_or_none(path)) is None:  # (1, C, H, W) uint8
            continue
        if downsample:
            image = crop_to_multiple(image, upscaling_factor(spec))
            if not image.numel():
                inputs.count_as_left_out(path, f"smaller than the factor {upscaling_factor(spec)}")
                continue
            small = psnr_ssim.resize_bicubic(image, 1 / upscaling_factor(spec))
        else:
            small = image
        try:
            x = bytes_to_model_input(run, small, source)
            translated = spec.to_bytes(translate_any_size(run, direction, x))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        item_pictures.write_image_as_png(
            translated[0].permute(1, 2, 0).numpy(), answer.claim_result_path(f"{stem}.png")
        )
        if downsample:
            larger = psnr_ssim.resize_bicubic(small, (image.shape[-2], image.shape[-1]))
            for suffix, x in (("", translated), ("_bicubic", larger)):
                for name, values in luminance_psnr_and_ssim(x, image, spec).items():
                    measured.setdefault(name + suffix, {})[stem] = values.item()
    record = run_record_fields(run, seed) | {"input_dir": str(folder), "task": spec.task}
    record |= inputs.used_and_left_out_counts()
    record |= {"backward": True} if backward else {}
    record |= {"downsample": True} if downsample else {}
    for name, by_image in measured.items():
        record[name] = mean_and_error_dict(
            torch.tensor(list(by_image.values()), dtype=torch.float64)
        )
        record[f"{name}_per_image"] = by_image
    print_mean_and_error_table(record)
    answer.write_final_record(record)
    return record


class FolderImageReader:
    """Reads the images of an input folder; what cannot be read is counted, as in training.

    Args:
        files: the images of the folder by name, which are read.
        channels: 1 or 3.
        run: its data may have said which values are black and white.
    """

    def __init__(self, folder: Path, files: dict[str, Path], channels: int, run: LoadedRun) -> None:
        self.folder = folder
        self.channels = channels
        self.used = 0
        self.left_out = LeftOut()
        self.notes: list[str] = []
        option = f"input_dir={folder}"
        self.ranges = find_pixel_ranges([*files.values()], option, self.notes, run.file_range)
        for note in self.notes:
            print(note, file=sys.stderr)
        for path in sorted(set(folder.iterdir()) - set(files.values())):
            self.left_out.add(reason_to_ignore_file(path), path.name)

    def read_image_or_none(self, path: Path) -> Tensor | None:
        """Return an image as bytes (1, C, H, W), or None if it cannot be read."""
        try:
            image = image_decoding.read_image(path, self.channels, self.ranges)
        except image_decoding.DECODE_ERRORS as error:
            self.left_out.add("unreadable", f"{path.name} ({one_line_error_message(error)})")
            return None
        self.used += 1
        return image.unsqueeze(0)

    def count_as_left_out(self, path: Path, reason: str) -> None:
        """Count an image that was read but is not used."""
        self.used -= 1
        self.left_out.add(reason, path.name)

    def used_and_left_out_counts(self) -> dict[str, Any]:
        """Return the numbers of images used and left out, and print the latter.

        Raises:
            UserError: no image could be read.
        """
        if not self.used:
            raise UserError(f"{self.folder}: {'; '.join(self.left_out.lines())}; no image is left")
        for line in self.left_out.lines():
            print(line, file=sys.stderr)
        left_out = self.left_out.to_json()
        record: dict[str, Any] = {"n": self.used}
        record |= {"notes": self.notes} if self.notes else {}
        return record | ({"left_out": left_out} if left_out else {})


def reason_to_ignore_file(path: Path) -> str:
    """Return why a file or folder in an input folder is not one of its images."""
    if is_hidden_or_system_name(path.name):
        return "hidden"
    if path.is_dir():
        return "a folder inside of input_dir="
    return f"unsupported suffix {path.suffix}" if path.suffix else "without a suffix"


def require_gray_or_rgb_model(
    run: LoadedRun, spec: DataSpec, source: DataSpec, option: str = "input_dir"
) -> None:
    """Refuse images of one's own for a model whose sources are not gray or RGB images."""
    if spec.kind == "image" and source.kind == "image" and source.shape[0] in (1, 3):
        return
    hint = "; genlab inpaint marks the hidden part of an image" if spec.task == "inpaint" else ""
    raise UserError(
        f"{option}= is for models whose sources are gray or RGB images; "
        f"{run.name} takes {source.kind} {source.shape}{hint}"
    )


def crop_to_multiple(image: Tensor, factor: int) -> Tensor:
    """Return images (N, C, H, W) cropped at the bottom and right to sides that are multiples."""
    height, width = (side - side % factor for side in image.shape[-2:])
    return image[..., :height, :width]


def bytes_to_model_input(run: LoadedRun, image: Tensor, spec: DataSpec) -> Tensor:
    """Return byte images in a DataSpec's range, on the run's device in the model's dtype."""
    return spec.from_bytes(image.to(run.device.torch, next(run.model.parameters()).dtype))


@torch.no_grad()
def translate_any_size(run: LoadedRun, direction: TranslationDirection, x: Tensor) -> Tensor:
    """Translate sources (N, C, H, W) of any size to targets (N, C', H', W'), on the CPU.

    The border of a source is replicated until the sides are multiples of the model's
    `size_multiple`, and the output is cropped. A `size_multiple` of 0 allows one size only.

    Raises:
        UserError: the model takes one size, and this is another.
    """
    source, target = spec_of_sources(direction.spec), direction.spec
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
