"""genlab sample: draw samples; write them as a picture, arrays and single PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.config.instantiate import parameters_and_type_hints, validate_kwargs
from genlab.config.recipes import list_recipes
from genlab.console import track
from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.inference.items_and_codes import refuse_unknown_class
from genlab.inference.output_files import CommandRequest, Writer, write_and_print_output_files
from genlab.inference.requirements import require_ability
from genlab.inference.results import (
    make_npz_and_csv_writers,
    make_picture_caption,
    output_folder_of_run,
    run_record_fields,
)
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, Positive
from genlab.viz import item_pictures
from genlab.viz.picture import Picture
from genlab.viz.sheets import save_picture_as_sheet

# Samples in a picture, by kind of data.
MAX_SHOWN = {"image": 256, "points": 20_000, "tokens": 20_000, "table": 20_000}
MAX_SHOWN_OTHER = 64
MAX_PROMPT_COLUMNS = 12  # prompts above the columns of a picture


def sample(
    run: LoadedRun,
    *,
    n: Positive = 64,
    label: ClassNumber | list[ClassNumber] | None = None,
    prompt: str | list[str] | None = None,
    seed: Count = 0,
    batch_size: Positive = 256,
    images: bool = False,
    output_dir: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> np.ndarray:
    """Draw n samples, write them as a picture and as arrays, and return them.

    Args:
        label: a class, or a list of classes that the samples cycle through.
        prompt: a caption, or a list of captions that the samples cycle through.
        images: also write each image as a PNG file.
        sampler: options of the model's `sample`.

    Raises:
        UserError: the model does not sample, lacks the class, sampler or option, or is not
            conditioned on text.
    """
    request = CommandRequest.from_command_call(sample, [run], locals(), ignore=("images",))
    require_ability(run, "sample")
    if images and run.spec.kind != "image":
        raise UserError(
            f"images=true: {run.name} on {run.dataset_name} gives {run.spec.kind}, not images; the "
            ".npz file has the samples"
        )
    options = validated_sampler_options(run, sampler or {})
    captions = [prompt] if isinstance(prompt, str) else prompt
    classes, tokens = validated_class_numbers(run, label), encode_prompts(run, captions)
    torch.manual_seed(seed)
    if run.spec.kind == "table" and run.model.conditional and not classes:
        classes = draw_training_classes(run, n)  # a row of a table has its class
    conditions = torch.tensor(classes) if tokens is None else tokens  # (k,) or (k, length)
    x = draw_samples(run, n, conditions, batch_size=batch_size, options=options)  # (n, *shape)

    arrays = {"x": x.numpy()}
    if run.spec.kind == "image":
        arrays["range"] = np.array(run.spec.range)  # so that the file explains itself
    if classes:
        arrays["y"] = np.resize(classes, n)
    shown = x[: MAX_SHOWN.get(run.spec.kind, MAX_SHOWN_OTHER)]
    record = run_record_fields(run, seed) | {"n": n, "label": label, "prompt": prompt}
    record |= {"sampler": options}
    caption = make_picture_caption("samples", run, seed)
    named = classes if label is not None else []
    picture = arrange_by_prompt(render_samples(run, shown), captions)
    below = None if picture.column_names else captions
    caption += caption_line_of_conditions(run, named, below, options)
    files: dict[str, Writer] = {
        ".png": partial(save_picture_as_sheet, picture, caption=caption),
        **make_npz_and_csv_writers(run, arrays, {"x": ()}),
    }
    if run.spec.kind == "tokens":  # beside the picture of the texts
        files[".txt"] = partial(write_text_samples, shown, run)
    if images:
        files["/"] = partial(write_images_as_png_files, x, run)
    write_and_print_output_files(
        request, output_folder_of_run(run, output_dir), "sample", record, files
    )
    samples: np.ndarray = x.numpy()
    return samples


def draw_samples(
    run: LoadedRun, n: int, conditions: Tensor, *, batch_size: int, options: dict[str, Any]
) -> Tensor:
    """Draw n samples (n, *shape) in batches, which cycle through the conditions (k, …) if any."""
    parts = []
    for start in track(range(0, n, batch_size), "drawing samples", unit="batches"):
        size = min(batch_size, n - start)
        y = None
        if len(conditions):
            index = torch.arange(start, start + size) % len(conditions)
            y = conditions[index].to(run.device.torch)
        drawn = run.model.sample(size, y, **options).cpu()
        parts.append(drawn.float() if drawn.is_floating_point() else drawn)  # tokens stay integers
    return torch.cat(parts)


def render_samples(run: LoadedRun, x: Tensor) -> Picture:
    """Return samples as a picture; points are drawn over training data that can be read."""
    reals = None
    columns: Sequence[Any] = ()
    if run.spec.kind in ("points", "table"):
        if run.table_units is not None:
            columns = run.table_units.columns
        with suppress(UserError):
            split = next(name for name in ("train", "test") if run.dataset.size(name))
            reals, columns = run.dataset.head(split, len(x)).x, run.dataset.columns
    return item_pictures.render_items_as_picture(x, run.spec, reals=reals, columns=columns)


def arrange_by_prompt(picture: Picture, captions: list[str] | None) -> Picture:
    """Return a picture of samples with a column for each of several prompts."""
    if picture.is_plot or not captions or not 1 < len(captions) <= MAX_PROMPT_COLUMNS:
        return picture
    return replace(picture, columns=len(captions), column_names=captions)


def caption_line_of_conditions(
    run: LoadedRun, classes: list[int], captions: list[str] | None, options: dict[str, Any]
) -> str:
    """Return the caption's line with classes, prompts and sampler of the samples, or ""."""
    parts = []
    if classes:
        parts.append(f"class {', '.join(run.spec.class_name(k) for k in classes)}")
    parts += [f"prompt: {text}" for text in captions or ()]
    parts += [f"{key}={value}" for key, value in options.items()]
    return "\n" + "; ".join(parts) if parts else ""


def write_text_samples(x: Tensor, run: LoadedRun, path: Path) -> None:
    """Write token sequences (N, T) as a text file."""
    texts = item_pictures.decode_tokens_to_texts(x, run.spec)
    atomic_write(path, item_pictures.join_texts_by_dashes(texts).encode("utf-8", "replace"))


def write_images_as_png_files(x: Tensor, run: LoadedRun, folder: Path) -> None:
    """Write each image as a PNG file into a folder."""
    for i, image in enumerate(item_pictures.to_uint8_images(x, run.spec)):
        item_pictures.write_image_as_png(image, folder / f"{i:06d}.png")


# --- conditions and options -----------------------------------------------------------------------


def encode_prompts(
    run: LoadedRun, captions: list[str] | None, option: str = "prompt"
) -> Tensor | None:
    """Return captions as bytes (k, length), padded with zeros; None without captions.

    Raises:
        UserError: the model is not conditioned on text, or a caption is too long for it.
    """
    if captions is None:
        return None
    if not run.model.text_conditional or run.spec.source is None:
        others = [recipe.name for recipe in list_recipes() if recipe.model.text_conditional]
        raise UserError(
            f"{option}={','.join(captions)}: {run.name} is not conditioned on text; models that "
            f"are: {', '.join(others)}"
        )
    length = run.spec.source.shape[0]
    encoded = [list(text.encode()) for text in captions]
    if (excess := max((len(text) for text in encoded), default=0) - length) > 0:
        raise UserError(
            f"{option}= is {excess} bytes longer than the {length} bytes that {run.name} takes"
        )
    return torch.tensor([text + [0] * (length - len(text)) for text in encoded])


def validated_class_numbers(run: LoadedRun, label: int | list[int] | None) -> list[int]:
    """Return the requested classes as a list.

    Raises:
        UserError: the model is not conditioned on classes, or its data does not have the class.
    """
    if label is None:
        return []
    classes = label if isinstance(label, list) else [label]
    if not run.model.conditional:
        raise UserError(
            f"label={label}: this {run.name} was trained without classes; train it with "
            "model.conditional=true where the recipe has that option"
        )
    for k in classes:
        refuse_unknown_class(run, k)
    return classes


def draw_training_classes(run: LoadedRun, n: int) -> list[int]:
    """Return n classes, drawn as often as the training rows have them.

    Raises:
        UserError: the run does not record its classes.
    """
    counts = run.training_class_counts
    if not sum(counts):
        raise UserError(f"{run.folder.path / 'data.json'} does not have the classes; set label=")
    drawn = torch.multinomial(torch.tensor(counts).double(), n, replacement=True)
    return [int(k) for k in drawn]


def validated_sampler_options(run: LoadedRun, sampler: dict[str, Any]) -> dict[str, Any]:
    """Return `sampler=…` and `sampler.<option>=…` as arguments of the model's `sample`.

    Raises:
        UserError: the model lacks the sampler or option, or the option does not take the value.
    """
    given = {option: value for option, value in sampler.items() if value is not None}
    if not given:
        return {}
    require_ability(run, "sample")
    parameters, _ = parameters_and_type_hints(run.model.sample)
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known = [name for name in named if name not in ("n", "y", "start", "report")]
    samplers = run.model.samplers
    if (name := given.pop("name", None)) is not None:
        if name not in samplers:
            choices = f"its samplers are {', '.join(samplers)}"
            raise UserError(
                f"sampler={name} is not for {run.name}: "
                + (choices if samplers else "it has one way to sample")
            )
        given["sampler"] = name
    for option in given:
        if option not in known:
            options = ", ".join(f"sampler.{name}" for name in known if name != "sampler")
            raise UserError(
                f"sampler.{option} is not for {run.name}: "
                + (f"it has {options}" if options else "its sampler does not have options")
            )
    checked = validate_kwargs(run.model.sample, given, "sampler", skip=2)  # after n and y
    # Lists, as records have them, so that records can be compared.
    return {
        option: list(value) if isinstance(value, tuple) else value
        for option, value in checked.items()
    }
