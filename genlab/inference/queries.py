"""What the commands that ask a run's model share: its items and codes, and a picture with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import abilities, need
from genlab.config.recipes import able
from genlab.console import show
from genlab.data.shuffling import permutation
from genlab.errors import UserError
from genlab.inference.results import write_arrays, write_record
from genlab.runs.loaded_run import Run
from genlab.spec import Batch

Split = Literal["test", "validation", "train"]
Space = Literal[
    "z", "w"
]  # of codes: those of the prior, or the styles that a style-based generator makes of them
DRAWS = 10_000  # codes of the prior by which its mean and spread are known
AT_ONCE = 250  # items that go through the model together


def items(
    run: Run, split: str, n: int | None, seed: int, listed: list[int] | None = None
) -> tuple[Batch, Tensor]:
    """Return items of a split on the run's device, and their numbers in it; see `numbers`.

    Raises:
        UserError: the split has no such item, or none at all.
    """
    index = numbers(run, split, n, seed, listed)
    return held(run, split, index, seed), index


def numbers(
    run: Run, split: str, n: int | None, seed: int, listed: list[int] | None = None
) -> Tensor:
    """Return the numbers (N,) of items of a split: those listed, or n (None: all) drawn by `seed`."""
    size = run.dataset.size(split)
    return (
        permutation(size, seed, 0)[:n] if size and listed is None else torch.tensor(listed or [0])
    )


def held(run: Run, split: str, index: Tensor, seed: int) -> Batch:
    """Return the items of these numbers (N,) of a split, on the run's device.

    Raises:
        UserError: the split has no such item, or none at all.
    """
    return run.device.ready(run.dataset.items(split, index, seed=seed))


@torch.no_grad()
def through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return a function of x (N, …), a part of it at a time."""
    return torch.cat([function(part) for part in x.split(AT_ONCE)])


def reference(run: Run, split: str, seed: int, y: int | None = None, space: Space = "z") -> Tensor:
    """Return codes (N, …) that show where the decoder is at home: the prior's, of class y if given, else those of data."""
    if space == "w" or "prior" in abilities(run.model):
        torch.manual_seed(seed)
        return draw(run, DRAWS, y, space)
    return through(run.model.encode, items(run, split, DRAWS, seed)[0].x)


@torch.no_grad()
def draw(run: Run, n: int, y: int | None = None, space: Space = "z") -> Tensor:
    """Draw n codes (n, …) from the prior, of class y if given; in the space w their styles (n, dim).

    Raises:
        UserError: the space is w, and the model has no styles.
    """
    z = (
        run.model.prior(n)
        if y is None
        else run.model.prior(n, torch.full((n,), y, device=run.device.torch))
    )
    if space == "z":
        return z
    need(run.model, "styles", lambda: able("styles"))
    return through(run.model.styles, z)[:, 0]


def decoder(run: Run, space: Space = "z") -> Callable[[Tensor], Tensor]:
    """Return what makes items (B, *shape) of a space's codes: of w (B, dim) with the same style in every layer.

    Raises:
        UserError: the space is w, and the model has no styles.
    """
    if space == "z":
        return run.model.decode
    need(run.model, "synthesise", lambda: able("synthesise"))
    return lambda w: run.model.synthesise(w[:, None])


def one_class(run: Run, y: int | None, *, default: int | None = None) -> int | None:
    """Return the class asked for, or `default`; None for a model whose prior knows none.

    Raises:
        UserError: the prior takes no class, or the data has no such class.
    """
    takes = (
        getattr(run.model, "conditional", False) and "y" in signature(run.model.prior).parameters
    )
    if y is not None and not takes:
        mend = "train it with model.conditional=true where the recipe has it"
        raise UserError(f"y={y}: the prior of this {run.name} knows no classes; {mend}")
    if y is not None and y >= run.spec.classes:
        raise UserError(f"y={y}: {run.info['dataset']} has the classes 0 to {run.spec.classes - 1}")
    return default if y is None and takes else y


def mean(values: Tensor) -> dict[str, float | None]:
    """Return the mean of values (N,) with its standard error, which a single value has not."""
    values = values.double()
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else None
    return {"value": values.mean().item(), "error": error}


def squared_error(x: Tensor, other: Tensor) -> Tensor:
    """Return the squared error (N,) summed over the values of each item of x (N, *shape)."""
    return (x - other).double().square().flatten(1).sum(1)


def psnr(x: Tensor, other: Tensor, span: float) -> Tensor:
    """Return the peak signal-to-noise ratio (N,) in dB of images whose values span `span`; at most that of float32's rounding."""
    each = (x - other).double().square().flatten(1).mean(1)
    return 10 * torch.log10(span**2 / each.clamp_min((span * torch.finfo(torch.float32).eps) ** 2))


def write(
    run: Run,
    name: str,
    *,
    seed: int,
    images: dict[str, np.ndarray],
    record: dict[str, Any],
    arrays: dict[str, Tensor | np.ndarray | None],
    out: str | None,
) -> dict[str, Any]:
    """Write pictures (PNG), numbers (JSON) and arrays (.npz) into the run's samples/ or `out`; print their paths.

    Args:
        images: by what is added to their file's name; "" for the main one.
    """
    from genlab.viz import image_grids

    folder = Path(out) if out else run.folder.samples
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}_step{run.step}_seed{seed}"
    whole = {
        "model": run.name,
        "dataset": run.info["dataset"],
        "step": run.step,
        "seed": seed,
        **record,
    }
    table(record)
    for what, image in images.items():
        print(image_grids.save(image, folder / f"{stem}{what and '_' + what}.png"))
    write_record(whole, folder / f"{stem}.json")
    kept = {
        k: v.detach().cpu().numpy() if isinstance(v, Tensor) else v
        for k, v in arrays.items()
        if v is not None
    }
    write_arrays(folder / f"{stem}.npz", **kept)
    print(folder / f"{stem}.npz")
    return whole


def table(record: dict[str, Any]) -> None:
    """Print the measured numbers of a record, those that `mean` gave."""
    found = {
        k: v for k, v in record.items() if isinstance(v, dict) and set(v) == {"value", "error"}
    }
    cell = lambda v: "" if v is None else f"{v:.4g}"  # noqa: E731
    if found:
        show(
            ["", "mean", "± s.e."],
            [[k.replace("_", " "), cell(v["value"]), cell(v["error"])] for k, v in found.items()],
        )
