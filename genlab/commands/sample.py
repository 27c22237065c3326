"""genlab sample: draw samples; write them as a picture, arrays and single PNG files."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.abilities import require
from genlab.config.instantiate import accepted_parameters, validate_kwargs
from genlab.config.recipes import models_with
from genlab.errors import UserError
from genlab.inference.queries import check_class
from genlab.inference.results import write_arrays
from genlab.model import GenerativeModel
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.viz import image_grids

# Samples in a picture, by kind of data.
MAX_SHOWN = {"image": 256, "points": 20_000, "tokens": 20_000}
MAX_SHOWN_OTHER = 64
MAX_PROMPT_CHARACTERS = 60  # of the prompt in a file name


def sample(
    run: LoadedRun,
    *,
    n: Positive = 64,
    label: Count | list[Count] | None = None,
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
    require(run.model, "sample", lambda: models_with("sample"))
    options = sampler_options(run, sampler or {})
    captions = [prompt] if isinstance(prompt, str) else prompt
    classes, tokens = check_labels(run, label), encode_prompts(run, captions)
    conditions = torch.tensor(classes) if tokens is None else tokens  # (k,) or (k, length)
    torch.manual_seed(seed)
    x = draw_samples(run, n, conditions, batch_size=batch_size, options=options)  # (n, *shape)

    folder = Path(output_dir) if output_dir else run.folder.samples
    folder.mkdir(parents=True, exist_ok=True)
    name = file_stem(run, seed, classes, captions)
    shown = x[: MAX_SHOWN.get(run.spec.kind, MAX_SHOWN_OTHER)]
    image_grids.save_items(shown, run.spec, folder / f"{name}.png")
    print(folder / (f"{name}.txt" if run.spec.kind == "tokens" else f"{name}.png"))
    arrays = {"x": x.numpy()}
    if run.spec.kind == "image":
        arrays["range"] = np.array(run.spec.range)  # so that the file explains itself
    if classes:
        arrays["y"] = np.resize(classes, n)
    write_arrays(folder / f"{name}.npz", **arrays)
    print(folder / f"{name}.npz")
    if images:
        print(write_single_images(x, run, folder / name))
    samples: np.ndarray = x.numpy()
    return samples


def draw_samples(
    run: LoadedRun, n: int, conditions: Tensor, *, batch_size: int, options: dict[str, Any]
) -> Tensor:
    """Draw n samples (n, *shape) in batches, which cycle through the conditions (k, …) if any."""
    parts = []
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        y = None
        if len(conditions):
            index = torch.arange(start, start + size) % len(conditions)
            y = conditions[index].to(run.device.torch)
        show_progress(run, f"items {start + 1} to {start + size} of {n}")
        drawn = run.model.sample(size, y, **options).cpu()
        parts.append(drawn.float() if drawn.is_floating_point() else drawn)  # tokens stay integers
    return torch.cat(parts)


def show_progress(run: LoadedRun, title: str) -> None:
    """Show the sampling steps of a model, and of models inside it, as a progress bar."""
    for module in run.model.modules():
        if isinstance(module, GenerativeModel):
            module.progress = partial(tqdm, desc=title, leave=False, disable=None)


def file_stem(run: LoadedRun, seed: int, classes: list[int], captions: list[str] | None) -> str:
    """Return the name of the files of samples, without suffix."""
    name = f"sample_step{run.step}_seed{seed}"
    if classes:
        name += f"_y{'-'.join(map(str, classes))}"
    if captions is not None:
        text = re.sub(r"[^a-z0-9]+", "-", "-".join(captions).lower())
        name += "_" + text.strip("-")[:MAX_PROMPT_CHARACTERS]
    return name


def write_single_images(x: Tensor, run: LoadedRun, folder: Path) -> Path:
    """Write each image as a PNG file into an otherwise empty folder, and return the folder.

    Raises:
        UserError: the samples are not images.
    """
    if run.spec.kind != "image":
        raise UserError(
            f"images=true: {run.name} on {run.dataset_name} gives {run.spec.kind}, not images; the "
            ".npz file has the samples"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for i, image in enumerate(image_grids.to_uint8_images(x, run.spec)):
        image_grids.save_png(image, folder / f"{i:06d}.png")
    return folder


# --- conditions and options -----------------------------------------------------------------------


def encode_prompts(run: LoadedRun, captions: list[str] | None) -> Tensor | None:
    """Return captions as bytes (k, length), padded with zeros; None without captions.

    Raises:
        UserError: the model is not conditioned on text, or a caption is too long for it.
    """
    if captions is None:
        return None
    if not run.model.text_conditional or run.spec.source is None:
        raise UserError(
            f"prompt={','.join(captions)}: {run.name} is not conditioned on text; models that are: "
            "text2image"
        )
    length = run.spec.source.shape[0]
    encoded = [list(text.encode()) for text in captions]
    if (excess := max((len(text) for text in encoded), default=0) - length) > 0:
        raise UserError(
            f"prompt= is {excess} bytes longer than the {length} bytes that {run.name} takes"
        )
    return torch.tensor([text + [0] * (length - len(text)) for text in encoded])


def check_labels(run: LoadedRun, label: int | list[int] | None) -> list[int]:
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
        check_class(run, k)
    return classes


def sampler_options(run: LoadedRun, sampler: dict[str, Any]) -> dict[str, Any]:
    """Return `sampler=…` and `sampler.<option>=…` as arguments of the model's `sample`.

    Raises:
        UserError: the model lacks the sampler or option, or the option does not take the value.
    """
    given = {option: value for option, value in sampler.items() if value is not None}
    if not given:
        return {}
    require(run.model, "sample", lambda: models_with("sample"))
    parameters, _ = accepted_parameters(run.model.sample)
    named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    known = [name for name in named if name not in ("n", "y")]
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
