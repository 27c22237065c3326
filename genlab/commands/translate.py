"""genlab translate, colorize, superres: what a model makes of held-out sources, beside the truth, or of a folder of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab.commands.sample import class_list
from genlab.config.recipes import able
from genlab.data.degradations import Operator
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.image_to_image import enlarges, of_folder, one_way, way_of
from genlab.inference.requirements import ready
from genlab.metrics import psnr_ssim
from genlab.metrics.context import to_bytes
from genlab.metrics.paired_translation import USUAL, agreement, guesses, translated, why_no_lpips
from genlab.runs.loaded_run import Run
from genlab.spec import Batch, Count, Fraction, Positive, Spec
from genlab.viz import image_grids

SHOWN, FILMS = 10, 4  # items in a picture
UNITS = {
    "psnr": "psnr_db",
    "squared_error": "squared_error_a_frame",
}  # names in a record; others: their own


def translate(
    run: Run,
    *,
    folder: str | None = None,
    back: bool = False,
    strength: Fraction | None = None,
    y: Count | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Translate n sources of a split (None: all), or those listed, and measure them against the truth; or those of a folder.

    Args:
        folder: images of any size; what is made of each is written under its name.
        back: make sources of targets, by a model that learnt both ways.
        strength: of a diffusion model, which draws each source anew from so far on the way to noise: 0 leaves it, 1 forgets
            it; None: 0.6.
        y: of a conditional diffusion model: the class of what it draws; None: none.

    Raises:
        UserError: the model does not translate, or not that way, or not images of these sizes.
    """
    if "translate" not in ready(run, "translate"):
        if back:
            raise UserError(one_way(run))
        return edited(
            run, folder, 0.6 if strength is None else strength, y, n, items, split, seed, out
        )
    if strength is not None or y is not None:
        can = ", ".join(able("edit"))
        raise UserError(
            f"strength= and y= are for diffusion models ({can}); {run.name} was trained to translate"
        )
    return asked(run, "translate", folder, n, items, split, seed, out, back=back)


def colorize(
    run: Run,
    *,
    folder: str | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Colour grey images, as `translate` does, with a model that was trained to; or by an unconditional diffusion model."""
    return asked(run, "colorize", folder, n, items, split, seed, out)


def superres(
    run: Run,
    *,
    folder: str | None = None,
    down: bool = False,
    factor: Positive | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Enlarge small images, as `translate` does, with a model that was trained to; or by an unconditional diffusion model.

    Args:
        down: the folder's images are the truth: make them smaller first, and measure what comes back beside bicubic.
        factor: of a diffusion model: how many times smaller its items are made before it enlarges them; None: 2.

    Raises:
        UserError: as `translate`, or `down` without a folder.
    """
    if factor is not None and "translate" in ready(run, "superres"):
        raise UserError(
            f"factor= is for diffusion models; {run.name} was trained to enlarge {enlarges(run.spec)} times"
        )
    if down and folder is None:
        raise UserError("down=true makes the images of a folder smaller: give in=<folder>")
    return asked(run, "superres", folder, n, items, split, seed, out, down=down, factor=factor or 2)


def asked(
    run: Run,
    command: str,
    folder: str | None,
    n: int | None,
    items: list[int] | None,
    split: str,
    seed: int,
    out: str | None,
    *,
    down: bool = False,
    factor: int = 2,
    back: bool = False,
) -> dict[str, Any]:
    """Do what one of the commands asks."""
    if "translate" not in ready(run, command):
        return restored(run, command, folder, n, items, split, seed, out, factor=factor)
    if folder is not None:
        return of_folder(
            run, command, Path(folder).expanduser(), seed=seed, out=out, down=down, back=back
        )
    way = way_of(run, back=back)
    held, index = queries.items(run, split, n, seed, items)
    held = way.seen(held)
    torch.manual_seed(seed)  # a generator may draw
    made = translated(way.translate, held.cond, way.spec)
    record: dict[str, Any] = {
        "task": way.spec.task,
        **({"back": True} if back else {}),
        "split": split,
        "n": len(made),
    }
    if run.dataset.paired:
        record |= measured(held, made, way.spec, way.seen(some(run, seed)).x.mean(0))
    else:
        record["truth"] = f"none: {run.info['dataset']} pairs nothing"
    image = picture(held, made, way.spec, paired=run.dataset.paired)
    return queries.write(
        run, f"{command}_back" if back else command, seed=seed, out=out, record=record, images={"": image},
        arrays={"index": index, "source": held.cond, "output": made, "x": held.x if run.dataset.paired else None},
    )  # fmt: skip


def picture(batch: Batch, made: Tensor, spec: Spec, *, paired: bool) -> np.ndarray:
    """Return the first sources of a batch, what a model made of them, and the truth, if the data is paired."""
    n = FILMS if spec.kind == "video" else SHOWN
    parts = [(batch.cond, spec.source), (made, spec), (batch.x, spec)][: 3 if paired else 2]
    return image_grids.compared(
        [(x[:n], own) for x, own in parts], ["source", "output", "truth"][: len(parts)]
    )


def translations(model: nn.Module, dataset: Any, split: str, *, seed: int = 0) -> np.ndarray:
    """Return a picture of what a model makes of a few sources of a split."""
    batch = dataset.take(split, FILMS if dataset.spec.kind == "video" else SHOWN, seed=seed)
    made = translated(model.translate, batch.cond.to(next(model.parameters())), dataset.spec)
    return picture(batch, made, dataset.spec, paired=dataset.paired)


def some(run: Run, seed: int) -> Batch:
    """Return training items, by whose mean is guessed."""
    return run.dataset.take("train", USUAL, seed=seed)


def measured(held: Batch, made: Tensor, spec: Spec, mean: Tensor) -> dict[str, Any]:
    """Return how near to the truth the outputs are, and what is guessed with no model; of super-resolution in luminance too."""
    record = {}
    for what, guess in {"": made, **guesses(held, spec, mean)}.items():
        of = what and f"_of_{what}"
        for name, values in agreement(guess, held.x, spec).items():
            record[UNITS.get(name, name) + of] = queries.mean(values)
        if spec.task == "superres":
            record |= {
                f"{k}{of}": queries.mean(v)
                for k, v in luminance(guess, held.x, spec, enlarges(spec)).items()
            }
    if why := why_no_lpips(spec):
        record["lpips"] = f"not measured: {why}"
    return record


def luminance(x: Tensor, y: Tensor, spec: Spec, crop: int) -> dict[str, Tensor]:
    """Return PSNR and SSIM (N,) in the protocol of papers on super-resolution; SSIM where its window fits."""
    x, y = (to_bytes(part.cpu(), spec.range) for part in (x, y))
    left = min(y.shape[-2:]) - 2 * crop
    found = {"psnr_luminance_db": psnr_ssim.psnr(x, y, crop=crop)} if left > 0 else {}
    return found | (
        {"ssim_luminance": psnr_ssim.ssim(x, y, crop=crop)} if left >= psnr_ssim.WINDOW else {}
    )


# --- diffusion models, which were trained for none of this ------------------------------------------------------------

UNDOES = {"colorize": "grey", "superres": "downsample"}  # command -> the operator


def restored(
    run: Run, command: str, folder: str | None, n: int | None, items: list[int] | None, split: str, seed: int, out: str | None,
    *, factor: int,
) -> dict[str, Any]:  # fmt: skip
    """Take the colour or the detail from held-out items, and let the model's own law give it back."""
    if folder is not None:
        raise UserError(
            f"in= is for models trained to {command}; {run.name} restores items of its own data set"
        )
    operator = Operator(
        name=UNDOES[command], spec=run.spec, factor=factor, sigma=0.0, mask="box", share=0.5
    )
    held, index = queries.items(run, split, n, seed, items)
    held.cond = operator(held.x, torch.Generator())
    spec = replace(run.spec, source=operator.source, task=command)
    torch.manual_seed(seed)
    made = queries.through(lambda source: run.model.restore(source, operator.smooth), held.cond)
    record = {"task": command, "how": "restore", "split": split, "n": len(made)}
    record |= measured(held, made, spec, some(run, seed).x.mean(0))
    parts = [(held.cond, spec.source), (made, spec), (held.x, spec)]
    return queries.write(
        run, command, seed=seed, out=out, record=record,
        images={"": image_grids.compared([(x[:SHOWN], own) for x, own in parts], ["source", "output", "truth"])},
        arrays={"index": index, "source": held.cond, "output": made, "x": held.x},
    )  # fmt: skip


def edited(
    run: Run, folder: str | None, strength: float, y: int | None, n: int | None, items: list[int] | None, split: str, seed: int,
    out: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Draw held-out items anew from part of the way to noise (SDEdit)."""
    if folder is not None:
        raise UserError(
            f"in= is for models trained to translate; {run.name} draws items of its own data set anew"
        )
    y = next(iter(class_list(run, y)), None)
    held, index = queries.items(run, split, n, seed, items)
    torch.manual_seed(seed)
    of = lambda x: None if y is None else torch.full((len(x),), y, device=x.device)  # noqa: E731
    made = queries.through(lambda x: run.model.edit(x, strength, of(x)), held.x)
    moved = queries.squared_error(held.x, made)
    record = {"how": "edit", "strength": strength, "split": split, "n": len(made)}
    record["squared_error_to_the_source"] = queries.mean(moved)
    name = f"translate_{strength:g}" + ("" if y is None else f"_y{y}")
    return queries.write(
        run, name, seed=seed, out=out, record=record,
        images={"": image_grids.compared([(held.x[:SHOWN], run.spec), (made[:SHOWN], run.spec)], ["source", "output"])},
        arrays={"index": index, "source": held.x, "output": made, "y": held.y},
    )  # fmt: skip
