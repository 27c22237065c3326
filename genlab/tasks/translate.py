"""genlab translate, colorize, superres: what a model makes of held-out sources, beside the truth, or of a folder of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from genlab.data.decode import BROKEN, whole
from genlab.data.operators import Operator
from genlab.errors import UserError
from genlab.metrics import pairs
from genlab.metrics.subject import to_bytes
from genlab.metrics.translation import USUAL, agreement, guesses, translated, why_no_lpips
from genlab.spec import Batch, Count, Fraction, Positive, Spec
from genlab.tasks import asking, pictures
from genlab.tasks.catalogue import able
from genlab.tasks.needs import ready
from genlab.tasks.records import write_record
from genlab.tasks.run import Run
from genlab.tasks.sample import class_list

SHOWN, FILMS = 10, 4  # items in a picture
UNITS = {"psnr": "psnr_db", "squared_error": "squared_error_a_frame"}  # names in a record; others: their own


def translate(
    run: Run,
    *,
    folder: str | None = None,
    strength: Fraction | None = None,
    y: Count | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: asking.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Translate n sources of a split (None: all), or those listed, and measure them against the truth; or those of a folder.

    Args:
        folder: images of any size; what is made of each is written under its name.
        strength: of a diffusion model, which draws each source anew from so far on the way to noise: 0 leaves it, 1 forgets
            it; None: 0.6.
        y: of a conditional diffusion model: the class of what it draws; None: none.

    Raises:
        UserError: the model does not translate, or not images of these sizes.
    """
    if "translate" not in ready(run, "translate"):
        return edited(run, folder, 0.6 if strength is None else strength, y, n, items, split, seed, out)
    if strength is not None or y is not None:
        can = ", ".join(able("edit"))
        raise UserError(f"strength= and y= are for diffusion models ({can}); {run.name} was trained to translate")
    return asked(run, "translate", folder, n, items, split, seed, out)


def colorize(
    run: Run,
    *,
    folder: str | None = None,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: asking.Split = "test",
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
    split: asking.Split = "test",
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
        raise UserError(f"factor= is for diffusion models; {run.name} was trained to enlarge {enlarges(run.spec)} times")
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
) -> dict[str, Any]:
    """Do what one of the commands asks."""
    if "translate" not in ready(run, command):
        return restored(run, command, folder, n, items, split, seed, out, factor=factor)
    if folder is not None:
        return of_folder(run, command, Path(folder).expanduser(), seed=seed, out=out, down=down)
    held, index = asking.items(run, split, n, seed, items)
    torch.manual_seed(seed)  # a generator may draw
    made = translated(run.model, held.cond, run.spec)
    record: dict[str, Any] = {"task": run.spec.task, "split": split, "n": len(made)}
    if run.dataset.paired:
        record |= measured(held, made, run.spec, usual(run, seed))
    else:
        record["truth"] = f"none: {run.info['dataset']} pairs nothing"
    image = picture(held, made, run.dataset)
    return asking.write(
        run, command, seed=seed, out=out, record=record, images={"": image},
        arrays={"index": index, "source": held.cond, "output": made, "x": held.x if run.dataset.paired else None},
    )  # fmt: skip


def picture(batch: Batch, made: Tensor, dataset: Any) -> np.ndarray:
    """Return the first sources of a batch, what a model made of them, and the truth, if the data has it."""
    spec, n = dataset.spec, FILMS if dataset.spec.kind == "video" else SHOWN
    parts = [(batch.cond, spec.source), (made, spec), (batch.x, spec)][: 3 if dataset.paired else 2]
    return pictures.compared([(x[:n], own) for x, own in parts], ["source", "output", "truth"][: len(parts)])


def translations(model: nn.Module, dataset: Any, split: str, *, seed: int = 0) -> np.ndarray:
    """Return a picture of what a model makes of a few sources of a split."""
    batch = dataset.take(split, FILMS if dataset.spec.kind == "video" else SHOWN, seed=seed)
    return picture(batch, translated(model, batch.cond.to(next(model.parameters())), dataset.spec), dataset)


def usual(run: Run, seed: int) -> Tensor:
    """Return the mean of training targets (*shape)."""
    return run.dataset.take("train", USUAL, seed=seed).x.mean(0)


def measured(held: Batch, made: Tensor, spec: Spec, mean: Tensor) -> dict[str, Any]:
    """Return how near to the truth the outputs are, and what is guessed with no model; of super-resolution in luminance too."""
    record = {}
    for what, guess in {"": made, **guesses(held, spec, mean)}.items():
        of = what and f"_of_{what}"
        for name, values in agreement(guess, held.x, spec).items():
            record[UNITS.get(name, name) + of] = asking.mean(values)
        if spec.task == "superres":
            record |= {f"{k}{of}": asking.mean(v) for k, v in luminance(guess, held.x, spec, enlarges(spec)).items()}
    if why := why_no_lpips(spec):
        record["lpips"] = f"not measured: {why}"
    return record


def luminance(x: Tensor, y: Tensor, spec: Spec, crop: int) -> dict[str, Tensor]:
    """Return PSNR and SSIM (N,) in the protocol of papers on super-resolution; SSIM where its window fits."""
    x, y = (to_bytes(part.cpu(), spec.range) for part in (x, y))
    left = min(y.shape[-2:]) - 2 * crop
    found = {"psnr_luminance_db": pairs.psnr(x, y, crop=crop)} if left > 0 else {}
    return found | ({"ssim_luminance": pairs.ssim(x, y, crop=crop)} if left >= pairs.WINDOW else {})


def enlarges(spec: Spec) -> int:
    """Return how many times larger than its source a target is."""
    return spec.shape[-1] // spec.source.shape[-1]


# --- diffusion models, which were trained for none of this ------------------------------------------------------------

UNDOES = {"colorize": "grey", "superres": "downsample"}  # command -> the operator


def restored(
    run: Run, command: str, folder: str | None, n: int | None, items: list[int] | None, split: str, seed: int, out: str | None,
    *, factor: int,
) -> dict[str, Any]:  # fmt: skip
    """Take the colour or the detail from held-out items, and let the model's own law give it back."""
    if folder is not None:
        raise UserError(f"in= is for models trained to {command}; {run.name} restores items of its own data set")
    operator = Operator(name=UNDOES[command], spec=run.spec, factor=factor, sigma=0.0, mask="box", share=0.5)
    held, index = asking.items(run, split, n, seed, items)
    held.cond = operator(held.x, torch.Generator())
    spec = replace(run.spec, source=operator.source, task=command)
    torch.manual_seed(seed)
    made = asking.through(lambda source: run.model.restore(source, operator.smooth), held.cond)
    record = {"task": command, "how": "restore", "split": split, "n": len(made), **measured(held, made, spec, usual(run, seed))}
    parts = [(held.cond, spec.source), (made, spec), (held.x, spec)]
    return asking.write(
        run, command, seed=seed, out=out, record=record,
        images={"": pictures.compared([(x[:SHOWN], own) for x, own in parts], ["source", "output", "truth"])},
        arrays={"index": index, "source": held.cond, "output": made, "x": held.x},
    )  # fmt: skip


def edited(
    run: Run, folder: str | None, strength: float, y: int | None, n: int | None, items: list[int] | None, split: str, seed: int,
    out: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Draw held-out items anew from part of the way to noise (SDEdit)."""
    if folder is not None:
        raise UserError(f"in= is for models trained to translate; {run.name} draws items of its own data set anew")
    y = next(iter(class_list(run, y)), None)
    held, index = asking.items(run, split, n, seed, items)
    torch.manual_seed(seed)
    of = lambda x: None if y is None else torch.full((len(x),), y, device=x.device)  # noqa: E731
    made = asking.through(lambda x: run.model.edit(x, strength, of(x)), held.x)
    moved = asking.squared_error(held.x, made)
    record = {"how": "edit", "strength": strength, "split": split, "n": len(made)}
    record["squared_error_to_the_source"] = asking.mean(moved)
    name = f"translate_{strength:g}" + ("" if y is None else f"_y{y}")
    return asking.write(
        run, name, seed=seed, out=out, record=record,
        images={"": pictures.compared([(held.x[:SHOWN], run.spec), (made[:SHOWN], run.spec)], ["source", "output"])},
        arrays={"index": index, "source": held.x, "output": made, "y": held.y},
    )  # fmt: skip


# --- folders ----------------------------------------------------------------------------------------------------------


def of_folder(run: Run, command: str, folder: Path, *, seed: int, out: str | None, down: bool) -> dict[str, Any]:
    """Write what the model makes of each image of a folder, under its name; with `down`, of each made smaller, and measure it."""
    spec, source = run.spec, run.spec.source
    if spec.kind != "image" or source.kind != "image" or source.shape[0] not in (1, 3):
        raise UserError(f"in= is for models whose sources are grey or RGB images; {run.name} takes {source.kind} {source.shape}")
    where = Path(out) if out else run.folder.samples / f"{command}_{folder.name}_step{run.step}"
    files, found, scale = pairs.by_stem(folder), {}, enlarges(spec)
    torch.manual_seed(seed)
    for stem, path in files.items():
        image = read(path, source.shape[0])  # (1, C, H, W) uint8
        if down:
            height, width = (side - side % scale for side in image.shape[-2:])
            image = image[..., :height, :width]
        small = pairs.bicubic(image, 1 / scale) if down else image
        try:
            made = to_bytes(sized(run, small), spec.range)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        pictures.save(made[0].permute(1, 2, 0).numpy(), where / f"{stem}.png")
        if down:
            larger = pairs.bicubic(small, tuple(image.shape[-2:]))
            for name, x in (("", made), ("_of_bicubic", larger)):
                found.setdefault(f"psnr_luminance_db{name}", []).append(pairs.psnr(x, image, crop=scale))
                found.setdefault(f"ssim_luminance{name}", []).append(pairs.ssim(x, image, crop=scale))
    record = {"model": run.name, "dataset": run.info["dataset"], "step": run.step, "seed": seed, "in": str(folder)}
    record |= {"task": spec.task, "n": len(files)} | ({"down": True} if down else {})
    for name, values in found.items():
        each = dict(zip(files, torch.cat(values).tolist(), strict=True))
        record |= {name: asking.mean(torch.cat(values)), f"{name}_each": each}
    asking.table(record)
    write_record(record, where / f"{command}.json")
    print(f"{len(files):,} images in {where}")
    return record


@torch.no_grad()
def sized(run: Run, image: Tensor) -> Tensor:
    """Return what the model makes (1, C', H', W') of one byte image (1, C, H, W) of any size, on the CPU.

    The source is padded, its border repeated, to a multiple of what the model needs (`multiple`: 1 by default; 0: it takes
    one size alone), and the output cut back.

    Raises:
        UserError: the model takes one size, and this is another.
    """
    source, target = run.spec.source, run.spec
    (low, high), (height, width) = source.range, image.shape[-2:]
    need = getattr(run.model, "multiple", 1)
    if not need and (height, width) != source.shape[1:]:
        has = f"{run.name} takes sources of {source.shape[2]}×{source.shape[1]} alone"
        raise UserError(f"{has}, and this has {width}×{height}; resize it, or train with another prepare.size")
    down, right = (-side % need if need else 0 for side in (height, width))
    x = image.to(run.device.torch, next(run.model.parameters()).dtype) / 255 * (high - low) + low
    made = run.model.translate(pad(x, (0, right, 0, down), mode="replicate")).float().cpu()
    rows, columns = height * target.shape[1] // source.shape[1], width * target.shape[2] // source.shape[2]
    return made[..., :rows, :columns]


def read(path: Path, channels: int) -> Tensor:
    """Return an image file as bytes (1, C, H, W) in grey or RGB, transparency laid over white.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return whole(path, channels).unsqueeze(0)
    except BROKEN as error:
        raise UserError(f"unreadable image {path}: {' '.join(str(error).split())}") from error
