"""The ways in which a translator is asked, there and back, and one's own images of any size on such a way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from genlab.config.recipes import recipes
from genlab.data.image_decoding import BROKEN, whole
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.results import write_record
from genlab.metrics import psnr_ssim
from genlab.metrics.context import to_bytes
from genlab.metrics.paired_translation import both_ways
from genlab.runs.loaded_run import Run
from genlab.spec import Batch, Spec
from genlab.viz import image_grids


@dataclass(frozen=True)
class Way:
    """A direction in which a model is asked: how, the Spec of what it makes, and whether it is the way back."""

    translate: Callable[[Tensor], Tensor]
    spec: Spec
    back: bool = False

    def seen(self, batch: Batch) -> Batch:
        """Return a batch of the data as this direction has it: on the way back a target is what is given, a source the truth."""
        return Batch(batch.cond, None, batch.x) if self.back else batch


def way_of(run: Run, *, back: bool = False) -> Way:
    """Return the direction in which a run's model was trained, or the one back.

    Raises:
        UserError: it knows no way back.
    """
    if not back:
        return Way(run.model.translate, run.spec)
    if not both_ways(run.model):
        raise UserError(one_way(run))
    spec = replace(
        run.spec.source, source=replace(run.spec, source=None, classes=0, task=""), task="translate"
    )
    return Way(partial(run.model.translate, backward=True), spec, back=True)


def one_way(run: Run) -> str:
    """Return why a run cannot be asked back."""
    can = ", ".join(
        recipe.name
        for recipe in recipes()
        if "translate" in recipe.abilities() and both_ways(recipe.model)
    )
    return f"back=true is for models that learn both ways ({can}), and {run.name} learns one; leave it out"


def enlarges(spec: Spec) -> int:
    """Return how many times larger than its source a target is."""
    return spec.shape[-1] // spec.source.shape[-1]


# --- folders ----------------------------------------------------------------------------------------------------------


def of_folder(
    run: Run,
    command: str,
    folder: Path,
    *,
    seed: int,
    out: str | None,
    down: bool = False,
    back: bool = False,
) -> dict[str, Any]:
    """Write what the model makes of each image of a folder, under its name; with `down`, of each made smaller, and measure it."""
    way = way_of(run, back=back)
    spec, source, command = way.spec, way.spec.source, f"{command}_back" if back else command
    if spec.kind != "image" or source.kind != "image" or source.shape[0] not in (1, 3):
        hint = "; genlab inpaint marks what is hidden" if spec.task == "inpaint" else ""
        takes = f"{run.name} takes {source.kind} {source.shape}"
        raise UserError(f"in= is for models whose sources are grey or RGB images; {takes}{hint}")
    where = Path(out) if out else run.folder.samples / f"{command}_{folder.name}_step{run.step}"
    files, found, scale = psnr_ssim.by_stem(folder), {}, enlarges(spec)
    torch.manual_seed(seed)
    for stem, path in files.items():
        image = read(path, source.shape[0])  # (1, C, H, W) uint8
        if down:
            height, width = (side - side % scale for side in image.shape[-2:])
            image = image[..., :height, :width]
        small = psnr_ssim.bicubic(image, 1 / scale) if down else image
        try:
            made = to_bytes(sized(run, way, ranged(run, small, source)), spec.range)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        image_grids.save(made[0].permute(1, 2, 0).numpy(), where / f"{stem}.png")
        if down:
            larger = psnr_ssim.bicubic(small, tuple(image.shape[-2:]))
            for name, x in (("", made), ("_of_bicubic", larger)):
                found.setdefault(f"psnr_luminance_db{name}", []).append(
                    psnr_ssim.psnr(x, image, crop=scale)
                )
                found.setdefault(f"ssim_luminance{name}", []).append(
                    psnr_ssim.ssim(x, image, crop=scale)
                )
    record = {
        "model": run.name,
        "dataset": run.info["dataset"],
        "step": run.step,
        "seed": seed,
        "in": str(folder),
    }
    record |= (
        {"task": spec.task, "n": len(files)}
        | ({"back": True} if back else {})
        | ({"down": True} if down else {})
    )
    for name, values in found.items():
        each = dict(zip(files, torch.cat(values).tolist(), strict=True))
        record |= {name: queries.mean(torch.cat(values)), f"{name}_each": each}
    queries.table(record)
    write_record(record, where / f"{command}.json")
    print(f"{len(files):,} images in {where}")
    return record


def ranged(run: Run, image: Tensor, spec: Spec) -> Tensor:
    """Return byte images in a Spec's range, as the run's model takes them."""
    low, high = spec.range
    return image.to(run.device.torch, next(run.model.parameters()).dtype) / 255 * (high - low) + low


@torch.no_grad()
def sized(run: Run, way: Way, x: Tensor) -> Tensor:
    """Return what the model makes (N, C', H', W') of sources (N, C, H, W) of any size, on the CPU.

    The source is padded, its border repeated, to a multiple of what the model needs (`multiple`: 1 by default; 0: it takes
    one size alone), and the output cut back.

    Raises:
        UserError: the model takes one size, and this is another.
    """
    source, target = way.spec.source, way.spec
    height, width = x.shape[-2:]
    need = getattr(run.model, "multiple", 1)
    if not need and (height, width) != source.shape[1:]:
        has = f"{run.name} takes sources of {source.shape[2]}×{source.shape[1]} alone"
        raise UserError(
            f"{has}, and this has {width}×{height}; resize it, or train with another prepare.size"
        )
    down, right = (-side % need if need else 0 for side in (height, width))
    made = way.translate(pad(x, (0, right, 0, down), mode="replicate")).float().cpu()
    rows, columns = (
        height * target.shape[1] // source.shape[1],
        width * target.shape[2] // source.shape[2],
    )
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
