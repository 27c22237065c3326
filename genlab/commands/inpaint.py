"""genlab inpaint: hidden parts of held-out items, filled in by the model's own law or by a search among its codes."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import need
from genlab.config.recipes import able
from genlab.data.image_decoding import transparent
from genlab.errors import UserError
from genlab.inference import corruptions, queries
from genlab.inference.image_to_image import ranged, read, sized, way_of
from genlab.inference.latent_search import searches
from genlab.inference.requirements import ready
from genlab.inference.results import write_record
from genlab.metrics import features, psnr_ssim
from genlab.metrics.context import to_bytes
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Fraction, Positive, PositiveFloat, Spec
from genlab.viz import image_grids

SHOWN = 10  # items in a picture
SEARCH = 500  # steps of a search


def inpaint(
    run: Run,
    *,
    folder: str | None = None,
    mask: str = "box",
    box: tuple[Count, Count, Count, Count] | None = None,
    side: corruptions.Side = "bottom",
    share: Fraction = 0.5,
    how: Literal["complete", "translate", "search"] | None = None,
    draws: Positive = 3,
    steps: Positive | None = None,
    weight: PositiveFloat = 0.01,
    judge: bool = False,
    n: Positive = 10,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Hide a part of each item, fill it in `draws` times, and measure the error there against the mean of training items.

    Args:
        folder: images of any size; each is written as a model that was trained to fill in makes it, under its name.
        mask: "box", "half", "random", or an image file whose white is hidden; of a folder's images also "transparent": where
            they are.
        box: top, left, height and width of what is hidden; None: in the middle, half of each side.
        side: which half is hidden.
        share: of pixels hidden at random.
        how: "complete" draws from the model's own law, "translate" asks a model that was trained to fill in, "search" looks
            for the best code; None: the first that the model can.
        steps: of the chain or the search; None: the model's own, or 500 of a search.
        weight: of the prior in a search: the variance of a value's noise, in squared ranges of the data.
        judge: ask a classifier, trained once for the data, in what share of the draws it finds the item's class.

    Raises:
        UserError: the model can do neither, or not what `how` asks for; the mask does not fit the data; `judge` without
            labels; a folder, and the model was not trained to fill in.
    """
    has = ready(run, "inpaint")
    trained = {"translate", "task=inpaint"} <= has
    how = how or ("complete" if "complete" in has else "translate" if trained else "search")
    verb = "decode" if how == "search" else how
    need(run.model, verb, lambda: able(verb))
    if how == "translate" and not trained:
        raise UserError(
            f"how=translate needs a model trained with dataset=pairs dataset.operator=mask, not {run.name}"
        )
    if folder is not None:
        if how != "translate":
            raise UserError("in= is for models trained with dataset=pairs dataset.operator=mask; "
                            f"{run.name} fills in items of its own data set")  # fmt: skip
        if judge:
            raise UserError(
                "judge=true is of the data set's own items, whose classes are known; leave it out, or in="
            )
        return own(run, Path(folder).expanduser(), mask, box, side, share, draws, seed, out)
    if judge and features.default(run.dataset) != "classifier":
        raise UserError(
            f"judge=true tells images of one class each, and {run.dataset.name} has no such; leave it out"
        )
    held, index = queries.items(run, split, n, seed, items)
    x = held.x
    where = corruptions.hidden(
        run.spec, mask, len(x), box=box, side=side, share=share, seed=seed
    ).to(x.device)
    many, known = (
        x.repeat_interleave(draws, 0),
        ~where.repeat_interleave(draws, 0),
    )  # (n · draws, *shape)
    usual = queries.reference(run, split, seed) if how == "search" else None
    torch.manual_seed(seed)
    if how == "complete":
        filled = completed(run, many, known, steps).unflatten(0, (-1, draws))  # (n, draws, *shape)
    elif how == "translate":
        filled = translated(run, many, known).unflatten(0, (-1, draws))
    else:
        low, high = run.spec.range if run.spec.kind == "image" else (x.min().item(), x.max().item())
        how_ = {"usual": usual, "weight": weight, "steps": steps or SEARCH, "span": high - low}
        z = searches(
            run.model.decode, x, ~where, tries=draws, **how_
        )  # (n, draws, …), the best first
        found = queries.through(run.model.decode, z.flatten(0, 1))
        filled = torch.where(known, many, found).unflatten(0, (-1, draws))

    usually = run.dataset.take("train", queries.DRAWS, seed=seed).x.to(x).mean(0)  # (*shape)
    count = where.flatten(1).sum(1)
    error = torch.stack(
        [queries.squared_error(x, filled[:, k]) for k in range(draws)], 1
    )  # (n, draws)
    plain = queries.squared_error(x, torch.where(where, usually, x))
    record = {
        "how": how, "mask": mask, **({"side": side} if mask == "half" else {}),
        "n": len(x), "draws": draws, "steps": steps, "judge": judge,
        "hidden_share": where.float().mean().item(),
        "squared_error_of_a_draw": queries.mean(error.mean(1)),
        "squared_error_of_the_draws_mean": queries.mean(queries.squared_error(x, filled.mean(1))),
        "squared_error_of_the_mean_fill": queries.mean(plain),
        "squared_error_per_hidden_value": queries.mean(error.mean(1) / count.clamp_min(1)),
    }  # fmt: skip
    if judge:
        record |= judged(run, x, filled, held.y)
    name = mask if mask in ("box", "half", "random") else "image"
    return queries.write(
        run, f"inpaint_{name}_{how}", seed=seed, out=out, record=record,
        images={"": picture(run, x, where, usually, filled)},
        arrays={"index": index, "y": held.y, "x": x, "hidden": where, "filled": filled, "mean_fill": usually},
    )  # fmt: skip


def judged(run: Run, x: Tensor, filled: Tensor, y: Tensor) -> dict[str, Any]:
    """Return the shares of the draws (n, draws, *shape), and of the items x (n, *shape), that are told to be of class y (n,)."""
    judge = features.spaces()["classifier"](run.dataset, x.device)
    one = lambda part: judge(to_bytes(part.float().cpu(), run.spec.range))[1].argmax(-1)  # noqa: E731
    of_draws, of_items, y = (
        queries.through(one, filled.flatten(0, 1)),
        queries.through(one, x),
        y.cpu(),
    )
    kept = of_draws.unflatten(0, filled.shape[:2]) == y[:, None]  # (n, draws)
    return {"class_kept": queries.mean(kept.double().mean(1)),
            "class_of_the_items_found": queries.mean((of_items == y).double()), **judge.conditions}  # fmt: skip


def completed(run: Run, x: Tensor, known: Tensor, steps: int | None) -> Tensor:
    """Return x (N, *shape) with unknown values drawn from the model, the known ones kept to the last bit."""
    options = {} if steps is None else {"steps": steps}
    if options and "steps" not in signature(run.model.complete).parameters:
        raise UserError(
            f"steps={steps}: {run.name} completes value after value, in no given number of steps"
        )
    parts = zip(x.split(queries.AT_ONCE), known.split(queries.AT_ONCE), strict=True)
    with torch.no_grad():
        return torch.cat(
            [torch.where(k, part, run.model.complete(part, k, **options)) for part, k in parts]
        )


def translated(run: Run, x: Tensor, known: Tensor) -> Tensor:
    """Return x (N, *shape) with unknown values as a translator fills them in, the known ones kept to the last bit."""
    return torch.where(known, x, queries.through(run.model.translate, marked(x, known, run.spec)))


def marked(x: Tensor, known: Tensor, spec: Spec) -> Tensor:
    """Return the sources (N, C + 1, H, W) of images x (N, C, H, W) with a known part, as `dataset.operator=mask` has them."""
    low, high = spec.range
    return torch.cat(
        [torch.where(known, x, (low + high) / 2), torch.where(known[:, :1], low, high).to(x)], 1
    )


def own(
    run: Run, folder: Path, mask: str, box: tuple[int, int, int, int] | None, side: corruptions.Side, share: float, draws: int,
    seed: int, out: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Write each image of a folder with its hidden part filled in, `draws` times, and the rest as it was, byte for byte.

    They are not measured: what is hidden of one's own images is what should not be there.
    """
    way, channels = way_of(run), run.spec.shape[0]
    if channels not in (1, 3):
        raise UserError(
            f"in= is for models of grey or RGB images; {run.name} makes {run.spec.shape}"
        )
    where = Path(out) if out else run.folder.samples / f"inpaint_{folder.name}_step{run.step}"
    files, shares = psnr_ssim.by_stem(folder), []
    torch.manual_seed(seed)
    for i, (stem, path) in enumerate(files.items()):
        image = read(path, channels)  # (1, C, H, W) uint8
        one = replace(run.spec, shape=tuple(image.shape[1:]))
        try:
            if mask == "transparent":
                hidden = transparent(path).expand_as(image)
            else:
                hidden = corruptions.hidden(
                    one, mask, 1, box=box, side=side, share=share, seed=seed + i
                )
            if not hidden.any():
                raise UserError(f"mask={mask} hides nothing of it")
            x = ranged(run, image, run.spec)
            source = marked(x, ~hidden.to(x.device), run.spec)
            made = torch.cat(
                [to_bytes(sized(run, way, source), run.spec.range) for _ in range(draws)]
            )
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        for k, filled in enumerate(torch.where(hidden, made, image), 1):
            image_grids.save(
                filled.permute(1, 2, 0).numpy(),
                where / (f"{stem}_{k}.png" if draws > 1 else f"{stem}.png"),
            )
        shares.append(hidden.float().mean().item())
    record = {
        "model": run.name,
        "dataset": run.info["dataset"],
        "step": run.step,
        "seed": seed,
        "in": str(folder),
    }
    record |= {
        "how": "translate",
        "mask": mask,
        "n": len(files),
        "draws": draws,
        "hidden_share": sum(shares) / len(shares),
    }
    write_record(record, where / "inpaint.json")
    print(f"{len(files):,} images in {where}")
    return record


def picture(run: Run, x: Tensor, where: Tensor, usually: Tensor, filled: Tensor) -> np.ndarray:
    """Return rows of images: items, what was seen of them (the rest in grey), each draw, the mean fill; points as a scatter."""
    if run.spec.kind != "image":
        return image_grids.picture(filled[:, 0], run.spec, reals=x)
    middle = sum(run.spec.range) / 2
    shown = [x, torch.where(where, middle, x), *filled.unbind(1), torch.where(where, usually, x)]
    rows = ["item", "seen", *(f"filled in {k + 1}" for k in range(filled.shape[1])), "mean fill"]
    some = torch.cat([part[:SHOWN] for part in shown])
    sheet = image_grids.grid(image_grids.to_bytes(some, run.spec), columns=min(SHOWN, len(x)))
    return image_grids.captioned(sheet, rows=rows)
