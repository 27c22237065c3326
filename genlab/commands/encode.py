"""genlab encode: write the codes of data as an .npz file, and plot them."""

from __future__ import annotations

from typing import Any

from genlab.batching import map_batched
from genlab.inference.items_and_codes import ItemSelection, Split, load_selected_items_and_indices
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.viz.latents import plot_codes

MAX_PLOTTED_CODES = 2000  # more would hide each other


def encode(
    run: LoadedRun,
    *,
    n: Positive | None = None,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Write the codes and labels of n items (None: all), or of those listed.

    Raises:
        UserError: the model does not encode, or an item does not exist.
    """
    request = CommandRequest.from_command_call(encode, [run], locals())
    require_command_support(run, "encode")
    batch, index = load_selected_items_and_indices(run, ItemSelection(n, items, split, seed))
    z = map_batched(run.model.encode, batch.x)  # (n, …)
    flat = z.flatten(1).double()
    labels = None if batch.y is None else batch.y.cpu().numpy()
    image = plot_codes(
        flat[:MAX_PLOTTED_CODES].cpu().numpy(),
        None if labels is None else labels[:MAX_PLOTTED_CODES],
        class_names=run.spec.class_names,
    )
    record = {
        "split": split,
        "n": len(batch),
        "code": list(z.shape[1:]),
        "norm": mean_and_error_dict(flat.norm(dim=1)),
        "mean": flat.mean(0).tolist(),
        "std": flat.std(0, correction=0).tolist(),
    }
    results = Results(
        f"encode_{split}",
        seed,
        record,
        images={"": image},
        arrays={"z": z, "y": labels, "index": index},
    )
    return write_results(run, request, results, output_dir)
