"""genlab sample: a picture of samples (text as .txt too), the raw numbers, and single PNGs for other tools."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from genlab.abilities import need
from genlab.config.instantiate import arguments
from genlab.config.recipes import able
from genlab.errors import UserError
from genlab.inference.results import write_arrays
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive
from genlab.viz import image_grids

SHOWN = {"image": 256, "points": 20_000, "tokens": 20_000}  # items shown, at most


def sample(
    run: Run,
    *,
    n: Positive = 64,
    y: Count | list[Count] | None = None,
    prompt: str | list[str] | None = None,
    seed: Count = 0,
    batch_size: Positive = 256,
    images: bool = False,
    out: str | None = None,
    sampler: dict[str, Any] | None = None,
) -> np.ndarray:
    """Draw n items, of class y or cycling through the classes in y, or of a prompt or through several; write and return them.

    Raises:
        UserError: the model cannot sample, has no such class, or no such sampler, or reads no prompt.
    """
    need(run.model, "sample", lambda: able("sample"))
    options = sampler_options(run, sampler or {})
    said = [prompt] if isinstance(prompt, str) else prompt
    classes, texts = class_list(run, y), prompts(run, said)
    conditions = torch.tensor(classes) if texts is None else texts  # (k,) or (k, length)
    torch.manual_seed(seed)
    parts = []
    for at in range(0, n, batch_size):
        size = min(batch_size, n - at)
        labels = None
        if len(conditions):
            labels = conditions[torch.arange(at, at + size) % len(conditions)].to(run.device.torch)
        for part in run.model.modules():
            if hasattr(part, "watch"):
                what = f"items {at + 1} to {at + size} of {n}"
                part.watch = partial(
                    tqdm, desc=what, leave=False, disable=None
                )  # shown on a terminal alone
        drawn = run.model.sample(size, labels, **options).cpu()
        parts.append(
            drawn.float() if drawn.is_floating_point() else drawn
        )  # tokens stay whole numbers
    x = torch.cat(parts)  # (n, *shape)

    folder = Path(out) if out else run.folder.samples
    folder.mkdir(parents=True, exist_ok=True)
    name = f"sample_step{run.step}_seed{seed}" + (
        f"_y{'-'.join(map(str, classes))}" if classes else ""
    )
    if said is not None:
        name += "_" + re.sub(r"[^a-z0-9]+", "-", "-".join(said).lower()).strip("-")[:60]
    shown = x[: SHOWN.get(run.spec.kind, 64)]
    image_grids.write(shown, run.spec, folder / f"{name}.png")
    print(folder / (f"{name}.txt" if run.spec.kind == "tokens" else f"{name}.png"))
    labels = {"y": np.resize(classes, n)} if classes else {}
    bounds = (
        {"range": np.array(run.spec.range)} if run.spec.kind == "image" else {}
    )  # so that the file explains itself
    write_arrays(folder / f"{name}.npz", x=x.numpy(), **bounds, **labels)
    print(folder / f"{name}.npz")
    if images:
        print(single_images(x, run, folder / name))
    return x.numpy()


def single_images(x: torch.Tensor, run: Run, folder: Path) -> Path:
    """Write each image as a PNG of its own; drop what an earlier call left there.

    Raises:
        UserError: the items are no images.
    """
    if run.spec.kind != "image":
        what = f"{run.name} on {run.info['dataset']} gives {run.spec.kind}, not images"
        raise UserError(f"images=true: {what}; the .npz holds them")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for i, image in enumerate(image_grids.to_bytes(x, run.spec)):
        image_grids.save(image, folder / f"{i:06d}.png")
    return folder


def prompts(run: Run, prompt: list[str] | None) -> torch.Tensor | None:
    """Return the prompts as bytes (k, length), filled up with zeros; None for none.

    Raises:
        UserError: the model reads no prompt, or one is too long for it.
    """
    if prompt is None:
        return None
    if not getattr(run.model, "prompted", False):
        raise UserError(
            f"prompt={','.join(prompt)}: {run.name} reads no text; models that do: text2image"
        )
    length = run.spec.source.shape[0]
    found = [list(text.encode()) for text in prompt]
    if (too_long := max((len(text) for text in found), default=0) - length) > 0:
        raise UserError(
            f"prompt= has {too_long} bytes more than the {length} that {run.name} reads"
        )
    return torch.tensor([text + [0] * (length - len(text)) for text in found])


def class_list(run: Run, y: int | list[int] | None) -> list[int]:
    """Return the classes asked for, as a list.

    Raises:
        UserError: the model knows no classes, or not that one.
    """
    if y is None:
        return []
    classes = y if isinstance(y, list) else [y]
    if not getattr(run.model, "conditional", False):
        mend = "train it with model.conditional=true where the recipe has it"
        raise UserError(f"y={y}: this {run.name} was trained without classes; {mend}")
    for k in classes:
        if k >= run.spec.classes:
            raise UserError(
                f"y={k}: {run.info['dataset']} has the classes 0 to {run.spec.classes - 1}"
            )
    return classes


def sampler_options(run: Run, sampler: dict[str, Any]) -> dict[str, Any]:
    """Return what `sampler=…` and `sampler.<option>=…` say, as arguments of the model's `sample`.

    Raises:
        UserError: the model has no such sampler or option, or the option no such value.
    """
    given = {k: v for k, v in sampler.items() if v is not None}
    if not given:
        return {}
    need(run.model, "sample", lambda: able("sample"))
    known = [p for p in inspect.signature(run.model.sample).parameters if p not in ("n", "y")]
    names = getattr(run.model, "samplers", ())
    if (name := given.pop("name", None)) is not None:
        if name not in names:
            has = f"its samplers are {', '.join(names)}" if names else "it has one way to sample"
            raise UserError(f"sampler={name} is not for {run.name}: {has}")
        given["sampler"] = name
    for option in given:
        if option not in known:
            options = [f"sampler.{k}" for k in known if k != "sampler"]
            has = f"it has {', '.join(options)}" if options else "its sampler has no options"
            raise UserError(f"sampler.{option} is not for {run.name}: {has}")
    checked = arguments(run.model.sample, given, "sampler", skip=2)  # after n and y
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in checked.items()
    }  # as records hold them, which are compared
