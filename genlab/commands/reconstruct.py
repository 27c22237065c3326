"""genlab reconstruct: held-out items beside what comes back from their codes, and how far off that is."""

from __future__ import annotations

from typing import Any

from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive
from genlab.viz.latents import PAIRS, reconstructions


def reconstruct(
    run: Run,
    *,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Encode and decode n items (None: all), or those listed; write a picture, errors and arrays, return the numbers.

    The squared error is summed over an item's values, in squared data units; PSNR is of images, the mean over them.

    Raises:
        UserError: the model does not encode and decode, or there is no such item.
    """
    ready(run, "reconstruct")
    held, index = queries.items(run, split, n, seed, items)
    z = queries.through(run.model.encode, held.x)
    back = queries.through(run.model.decode, z)
    errors = queries.squared_error(held.x, back)  # (n,)
    record = {
        "split": split, "n": len(held), "squared_error": queries.mean(errors),
        "squared_error_per_value": queries.mean(errors / run.spec.dim),
    }  # fmt: skip
    shown = len(held)
    if run.spec.kind == "image":
        low, high = run.spec.range
        record["psnr_db"] = queries.mean(queries.psnr(held.x, back, high - low))
        shown = PAIRS
    return queries.write(
        run, "reconstruct", seed=seed, out=out, record=record,
        images={"": reconstructions(held.x[:shown], back[:shown], run.spec)},
        arrays={"index": index, "y": held.y, "x": held.x, "reconstruction": back, "squared_errors": errors},
    )  # fmt: skip
