"""genlab denoise: held-out items with noise put on them, and what the model takes off again."""

from __future__ import annotations

from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from genlab.errors import UserError
from genlab.inference import corruptions, queries
from genlab.inference.image_to_image import of_folder
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, NonNegative, Positive, Spec
from genlab.viz import image_grids

SHOWN = 10  # items in a picture


def denoise(
    run: Run,
    *,
    folder: str | None = None,
    noise: corruptions.Noise = "gaussian",
    level: NonNegative | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Put noise on n items (None: all), or on those listed, let the model take it off, and measure both against the items.

    Args:
        folder: noisy images of any size; what a model that was trained to denoise makes of each is written under its name.
        noise: "gaussian", of standard deviation `level` in ranges of the data; "masking", a share `level` of the values at
            the lowest; "salt_and_pepper", a share at the lowest or highest.
        level: None: the one that a translator was trained for, else 0.3.

    Raises:
        UserError: the model does not denoise, there is no such item, a share above 1, or noise for images that have theirs.
    """
    own = "denoise" in ready(run, "denoise")  # a way of its own, for items of its own data set
    if folder is not None:
        if own:
            raise UserError(f"in= is for models trained with dataset=pairs dataset.operator=noise; {run.name} denoises items of "
                            "its own data set")  # fmt: skip
        if level is not None or noise != "gaussian":
            raise UserError("in= holds images that are noisy already; leave noise= and level= out")
        return of_folder(run, "denoise", Path(folder).expanduser(), seed=seed, out=out)
    clear = run.model.denoise if own else run.model.translate
    level = trained_level(run) if level is None else level
    if "sigma" in signature(clear).parameters:  # a model that must know how strong the noise is
        if noise != "gaussian":
            raise UserError(
                f"noise={noise}: {run.name} takes off Gaussian noise alone; set noise=gaussian"
            )
        clear = partial(clear, sigma=level * span(run.spec))
    if noise != "gaussian" and level > 1:
        raise UserError(f"level={level:g}: of {noise} it is a share of the values, at most 1")
    held, index = queries.items(run, split, n, seed, items)
    torch.manual_seed(seed)
    x = held.x
    dirty = corruptions.noisy(x, run.spec, noise, level)
    clean = queries.through(clear, dirty)
    before, after = queries.squared_error(x, dirty), queries.squared_error(x, clean)
    record = {
        "noise": noise, "level": level, "split": split, "n": len(x),
        "squared_error_before": queries.mean(before), "squared_error_after": queries.mean(after),
    }  # fmt: skip
    image = image_grids.picture(clean, run.spec, reals=x)
    if run.spec.kind == "image":
        low, high = run.spec.range
        record["psnr_db_before"] = queries.mean(queries.psnr(x, dirty, high - low))
        record["psnr_db_after"] = queries.mean(queries.psnr(x, clean, high - low))
        some = torch.cat([part[:SHOWN] for part in (x, dirty, clean)])
        sheet = image_grids.grid(image_grids.to_bytes(some, run.spec), columns=min(SHOWN, len(x)))
        image = image_grids.captioned(sheet, rows=["item", "with noise", "denoised"])
    return queries.write(
        run, f"denoise_{noise}{level:g}", seed=seed, out=out, record=record, images={"": image},
        arrays={"index": index, "y": held.y, "x": x, "noisy": dirty, "denoised": clean},
    )  # fmt: skip


def span(spec: Spec) -> float:
    """Return the range of images, or 1 of points: what a level of noise is counted in."""
    return spec.range[1] - spec.range[0] if spec.kind == "image" else 1.0


def trained_level(run: Run) -> float:
    """Return the strength of the noise that the run's data puts on its sources, or 0.3."""
    return run.config["dataset"]["sigma"] if run.spec.task == "denoise" else 0.3
