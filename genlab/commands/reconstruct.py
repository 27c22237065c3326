"""genlab reconstruct: encode and decode held-out items, and measure the error."""

from __future__ import annotations

from typing import Any

from genlab.batching import map_batched
from genlab.inference.queries import (
    ItemSelection,
    Split,
    psnr,
    select_items,
    squared_error,
    value_range,
)
from genlab.inference.requirements import require_command
from genlab.inference.results import Results, mean_with_error, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.viz.latents import MAX_RECONSTRUCTIONS, plot_reconstructions


def reconstruct(
    run: LoadedRun,
    *,
    n: Positive | None = 1000,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Encode and decode n items (None: all), or those listed, and measure the error.

    The squared error is summed over the values of an item, in squared data units. The PSNR of
    images is averaged over the images.

    Raises:
        UserError: the model does not encode and decode, or an item does not exist.
    """
    require_command(run, "reconstruct")
    batch, index = select_items(run, ItemSelection(n, items, split, seed))
    z = map_batched(run.model.encode, batch.x)
    decoded = map_batched(run.model.decode, z)
    errors = squared_error(batch.x, decoded)  # (n,)
    record = {
        "split": split,
        "n": len(batch),
        "squared_error": mean_with_error(errors),
        "squared_error_per_value": mean_with_error(errors / run.spec.dim),
    }
    shown = len(batch)
    if run.spec.kind == "image":
        record["psnr_db"] = mean_with_error(psnr(batch.x, decoded, value_range(batch.x, run)))
        shown = MAX_RECONSTRUCTIONS
    results = Results(
        "reconstruct",
        seed,
        record,
        images={"": plot_reconstructions(batch.x[:shown], decoded[:shown], run.spec)},
        arrays={
            "index": index,
            "y": batch.y,
            "x": batch.x,
            "reconstruction": decoded,
            "squared_errors": errors,
        },
    )
    return write_results(run, results, output_dir)
