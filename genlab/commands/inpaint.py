"""genlab inpaint: fill in hidden parts of items, by the model or by a latent search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genlab.batching import map_batched
from genlab.console import track
from genlab.data.image_decoding import transparency_mask
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.corruptions import Half, Mask, hidden_value_mask
from genlab.inference.image_to_image import (
    FolderImageReader,
    bytes_to_model_input,
    make_translation_direction,
    translate_any_size,
)
from genlab.inference.items_and_codes import ItemSelection, Split
from genlab.inference.latent_search import LatentSearch, optimize_codes_with_restarts
from genlab.inference.output_files import CommandRequest, OutputFolder
from genlab.inference.requirements import require_ability, require_command_support
from genlab.inference.results import (
    Results,
    mean_and_error_dict,
    run_record_fields,
    write_results,
)
from genlab.metrics import features, psnr_ssim
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, DataSpec, Fraction, Positive, PositiveFloat
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture

MAX_SHOWN = 10  # items in a picture
SEARCH_STEPS = 500
DATASET_MASKS = ("box", "half", "random")

Method = Literal["inpaint", "translate", "search"]


def inpaint(
    run: LoadedRun,
    *,
    input_dir: str | None = None,
    mask: str = "box",
    box: tuple[Count, Count, Count, Count] | None = None,
    half: Half = "bottom",
    mask_ratio: Fraction = 0.5,
    method: Method | None = None,
    draws: Positive = 3,
    steps: Positive | None = None,
    prior_weight: PositiveFloat = 0.01,
    classify_fills: bool = False,
    n: Positive = 10,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Hide a part of each item, fill it in `draws` times, and measure the error there.

    The error is compared with that of filling in the mean of the training items.

    Args:
        input_dir: a folder of images of any size, for models that were trained to fill in; each
            result is written under the name of its image.
        mask: "box", "half", "random", or an image file whose white pixels are hidden; for the
            images of a folder also "transparent", which hides their transparent pixels.
        box: top, left, height and width of the box; None is centered, with half of each side.
        half: the hidden half.
        mask_ratio: the fraction of pixels hidden at random.
        method: "inpaint" draws from the model's conditional distribution, "translate" uses a model
            that was trained to fill in, "search" finds the best code; None is the first that the
            model supports.
        steps: of the model's sampler or of the search; None is the model's default, or 500 of a
            search.
        prior_weight: weight of the prior in a search: the variance of the noise on a value, in
            squared ranges of the data.
        classify_fills: classify the results with a classifier trained once for the data, and report
            how often it finds the item's class.

    Raises:
        UserError: the model does not support the method, the mask does not fit the data, there are
            no labels to classify, or the model was not trained to fill in the images of a folder.
    """
    request = CommandRequest.from_command_call(inpaint, [run], locals())
    method = choose_inpainting_method(run, method)
    mask_spec = Mask(mask, box, half, mask_ratio)
    if input_dir is not None:
        if method != "translate":
            raise UserError(
                "input_dir= is for models trained with dataset=pairs dataset.operator=mask; "
                f"{run.name} fills in items of its dataset"
            )
        if classify_fills:
            raise UserError(
                "classify_fills=true is for items of the dataset, whose classes are known; leave "
                "it out, or input_dir="
            )
        return inpaint_folder(
            run, request, input_dir, mask_spec, draws=draws, seed=seed, output_dir=output_dir
        )
    if classify_fills and features.default_feature_space(run.dataset) != "classifier":
        raise UserError(
            "classify_fills=true needs images with one class each, which "
            f"{run.dataset.name} does not have; leave it out"
        )
    batch, index = items_and_codes.load_selected_items_and_indices(
        run, ItemSelection(n, items, split, seed)
    )
    x = batch.x
    hidden = hidden_value_mask(mask_spec, run.spec, len(x), seed=seed).to(x.device)
    if method == "inpaint" and steps is not None and not run.model.inpaints_in_steps:
        raise UserError(
            f"steps={steps}: {run.name} draws value after value, not in a given number of steps"
        )
    filler = HiddenValueFiller(method, draws, steps, prior_weight, split, seed)
    filled = filler.fill_unknown_values(run, x, ~hidden)  # (n, draws, *shape)

    mean_item = (
        run.dataset.head("train", items_and_codes.REFERENCE_CODES, seed=seed).x.to(x).mean(0)
    )
    record: dict[str, Any] = {"method": method, "mask": mask}
    record |= {"half": half} if mask == "half" else {}
    record |= {"n": len(x), "draws": draws, "steps": steps, "classify_fills": classify_fills}
    record |= measure_fill_errors(x, hidden, filled, mean_item)
    if classify_fills and batch.y is not None:
        record |= classifier_accuracy_on_fills(run, x, filled, batch.y)
    name = mask if mask in DATASET_MASKS else "image"
    results = Results(
        f"inpaint_{name}_{method}",
        seed,
        record,
        images={"": render_fills(run, x, hidden, mean_item, filled)},
        arrays={
            "index": index,
            "y": batch.y,
            "x": x,
            "hidden": hidden,
            "filled": filled,
            "mean_fill": mean_item,
        },
        items={"filled": ("item", "draw"), "x": ()},
    )
    return write_results(run, request, results, output_dir)


def choose_inpainting_method(run: LoadedRun, method: Method | None) -> Method:
    """Return the requested method, or the first that the model supports.

    Raises:
        UserError: the model does not support the method.
    """
    available = require_command_support(run, "inpaint")
    is_trained = {"translate", "task=inpaint"} <= available
    if method is None:
        method = "translate" if is_trained else "search"
        if "inpaint" in available:
            method = "inpaint"
    verb = "decode" if method == "search" else method
    require_ability(run, verb)
    if method == "translate" and not is_trained:
        raise UserError(
            "method=translate needs a model trained with dataset=pairs dataset.operator=mask, not "
            f"{run.name}"
        )
    return method


# --- filling in -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class HiddenValueFiller:
    """How hidden values are filled in; see `inpaint` for the options."""

    method: Method
    draws: int
    steps: int | None
    prior_weight: float
    split: Split
    seed: int

    def fill_unknown_values(self, run: LoadedRun, x: Tensor, known: Tensor) -> Tensor:
        """Fill in the unknown values of x (n, *shape) several times: (n, draws, *shape).

        The known values are kept to the last bit.
        """
        repeated = x.repeat_interleave(self.draws, 0)  # (n · draws, *shape)
        known_repeated = known.repeat_interleave(self.draws, 0)
        if self.method == "search":
            filled = self.fill_by_latent_search(run, x, known)
        elif self.method == "translate":
            torch.manual_seed(self.seed)
            source = append_mask_channel(repeated, known_repeated, run.spec)
            filled = map_batched(run.model.translate, source)
        else:
            torch.manual_seed(self.seed)
            filled = map_batched(
                lambda x, known: run.model.inpaint(x, known, steps=self.steps),
                repeated,
                known_repeated,
            )
        return torch.where(known_repeated, repeated, filled).unflatten(0, (-1, self.draws))

    def fill_by_latent_search(self, run: LoadedRun, x: Tensor, known: Tensor) -> Tensor:
        """Return the items (n · draws, *shape) of the codes that fit best, the best first."""
        search = LatentSearch(
            items_and_codes.prior_or_encoded_codes(run, split=self.split, seed=self.seed),
            self.prior_weight,
            self.steps or SEARCH_STEPS,
            items_and_codes.value_range_length(x, run),
        )
        torch.manual_seed(self.seed)
        z = optimize_codes_with_restarts(run.model.decode, x, known, search, tries=self.draws)
        return map_batched(run.model.decode, z.flatten(0, 1))


def append_mask_channel(x: Tensor, known: Tensor, spec: DataSpec) -> Tensor:
    """Return the sources (N, C + 1, H, W) of a translator for images x (N, C, H, W).

    As `dataset.operator=mask` makes them: hidden pixels are gray, and the last channel marks them.
    """
    low, high = spec.range
    visible = torch.where(known, x, (low + high) / 2)
    return torch.cat([visible, torch.where(known[:, :1], low, high).to(x)], 1)


def measure_fill_errors(
    x: Tensor, hidden: Tensor, filled: Tensor, mean_item: Tensor
) -> dict[str, Any]:
    """Return the squared errors of the fills (n, draws, *shape), and of the mean item."""
    error = torch.stack(
        [items_and_codes.squared_error_per_item(x, fill) for fill in filled.unbind(1)], 1
    )
    mean_error = items_and_codes.squared_error_per_item(x, filled.mean(1))
    plain_error = items_and_codes.squared_error_per_item(x, torch.where(hidden, mean_item, x))
    count = hidden.flatten(1).sum(1).clamp_min(1)
    return {
        "hidden_fraction": hidden.float().mean().item(),
        "squared_error_per_draw": mean_and_error_dict(error.mean(1)),
        "squared_error_of_mean_draw": mean_and_error_dict(mean_error),
        "squared_error_of_mean_fill": mean_and_error_dict(plain_error),
        "squared_error_per_hidden_value": mean_and_error_dict(error.mean(1) / count),
    }


def classifier_accuracy_on_fills(
    run: LoadedRun, x: Tensor, filled: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Return how often a classifier finds the labels (n,) in the fills, and in the items x."""
    classifier = features.EXTRACTORS["classifier"](run.dataset, x.device)

    def predict(x: Tensor) -> Tensor:
        _, logits = classifier(run.spec.to_bytes(x.cpu()))
        assert logits is not None, "the extractor is a classifier"
        return logits.argmax(-1)

    y = labels.cpu()
    kept = map_batched(predict, filled.flatten(0, 1)).unflatten(0, filled.shape[:2]) == y[:, None]
    found = map_batched(predict, x) == y
    return {
        "class_kept": mean_and_error_dict(kept.double().mean(1)),
        "class_found_in_items": mean_and_error_dict(found.double()),
        **classifier.conditions,
    }


def render_fills(
    run: LoadedRun, x: Tensor, hidden: Tensor, mean_item: Tensor, filled: Tensor
) -> Picture:
    """Return rows of items, their visible part, each fill and the mean fill."""
    if run.spec.kind != "image":
        return item_pictures.render_items_as_picture(
            filled[:, 0], run.spec, reals=x, name="filled in"
        )
    gray = sum(run.spec.range) / 2
    sets = [x, torch.where(hidden, gray, x), *filled.unbind(1), torch.where(hidden, mean_item, x)]
    fills = [f"filled in {k + 1}" for k in range(filled.shape[1])]
    shown = torch.cat([images[:MAX_SHOWN] for images in sets])
    pixels = item_pictures.to_uint8_images(shown, run.spec)
    rows = ["item", "visible", *fills, "mean fill"]
    return make_picture(pixels, columns=min(MAX_SHOWN, len(x)), row_names=rows)


# --- folders --------------------------------------------------------------------------------------


def inpaint_folder(
    run: LoadedRun,
    request: CommandRequest,
    input_dir: str,
    mask: Mask,
    *,
    draws: int,
    seed: int,
    output_dir: str | None,
) -> dict[str, Any]:
    """Fill in the hidden part of each image of a folder; keep the rest byte for byte.

    The results are not measured, because the truth below the hidden part is unknown.
    """
    direction, channels = make_translation_direction(run), run.spec.shape[0]
    if channels not in (1, 3):
        raise UserError(
            f"input_dir= is for models of gray or RGB images; {run.name} makes {run.spec.shape}"
        )
    folder = Path(input_dir).expanduser()
    files, fractions = psnr_ssim.find_images_by_stem(folder), []
    inputs = FolderImageReader(folder, files, channels, run)
    names = {
        stem: [f"{stem}_{k}.png" for k in range(1, draws + 1)] if draws > 1 else [f"{stem}.png"]
        for stem in files
    }
    every_name = [name for some in names.values() for name in some]
    answer = OutputFolder.choose_folder(
        request,
        "inpaint",
        source=folder,
        output_dir=output_dir,
        default_parent=run.folder.samples,
        names=every_name,
    )
    torch.manual_seed(seed)
    for i, (stem, path) in enumerate(track(files.items(), "inpainting", unit="images")):
        if (image := inputs.read_image_or_none(path)) is None:  # (1, C, H, W) uint8
            continue
        try:
            hidden = hidden_pixel_mask(run, mask, path, image, seed=seed + i)
            x = bytes_to_model_input(run, image, run.spec)
            source = append_mask_channel(x, ~hidden.to(x.device), run.spec)
            fills = [
                run.spec.to_bytes(translate_any_size(run, direction, source)) for _ in range(draws)
            ]
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        results = torch.where(hidden, torch.cat(fills), image)
        for name, filled in zip(names[stem], results, strict=True):
            item_pictures.write_image_as_png(
                filled.permute(1, 2, 0).numpy(), answer.claim_result_path(name)
            )
        fractions.append(hidden.float().mean().item())
    record = run_record_fields(run, seed) | {
        "input_dir": str(folder),
        "method": "translate",
        "mask": mask.kind,
        **inputs.used_and_left_out_counts(),
        "draws": draws,
        "hidden_fraction": sum(fractions) / len(fractions),
    }
    answer.write_final_record(record)
    return record


def hidden_pixel_mask(
    run: LoadedRun, mask: Mask, path: Path, image: Tensor, *, seed: int
) -> Tensor:
    """Return the hidden pixels (1, C, H, W) of an image.

    Raises:
        UserError: the mask hides nothing.
    """
    if mask.kind == "transparent":
        hidden = transparency_mask(path).expand_as(image)
    else:
        spec = replace(run.spec, shape=tuple(image.shape[1:]))
        hidden = hidden_value_mask(mask, spec, 1, seed=seed)
    if not hidden.any():
        raise UserError(f"mask={mask.kind} hides no pixel of it")
    return hidden
