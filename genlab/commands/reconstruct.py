"""genlab reconstruct: encode and decode held-out items, and measure the error."""

from __future__ import annotations

from typing import Any

from genlab.batching import map_batched
from genlab.inference.items_and_codes import (
    ItemSelection,
    Split,
    finite_psnr_per_item,
    load_selected_items_and_indices,
    squared_error_per_item,
)
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.metrics.reconstruction import level_range_length, move_to_bin_centers
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
    request = CommandRequest.from_command_call(reconstruct, [run], locals())
    require_command_support(run, "reconstruct")
    batch, index = load_selected_items_and_indices(run, ItemSelection(n, items, split, seed))
    batch.x = move_to_bin_centers(batch.x, run.spec)  # without dequantization noise
    z = map_batched(run.model.encode, batch.x)
    decoded = map_batched(run.model.decode, z)
    errors = squared_error_per_item(batch.x, decoded)  # (n,)
    record = {
        "split": split,
        "n": len(batch),
        "squared_error": mean_and_error_dict(errors),
        "squared_error_per_value": mean_and_error_dict(errors / run.spec.dim),
    }
    shown = len(batch)
    if run.spec.kind == "image":
        record["psnr_db"] = mean_and_error_dict(
            finite_psnr_per_item(batch.x, decoded, level_range_length(run.spec))
        )
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
        items={"reconstruction": (), "x": ()},
    )
    return write_results(run, request, results, output_dir)
