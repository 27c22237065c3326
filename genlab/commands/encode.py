"""genlab encode: write the codes of data as an .npz file, and plot them."""

from __future__ import annotations

from typing import Any

from genlab.batching import map_batched
from genlab.inference.queries import ItemSelection, Split, select_items
from genlab.inference.requirements import require_command
from genlab.inference.results import Results, mean_with_error, write_results
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
    require_command(run, "encode")
    batch, index = select_items(run, ItemSelection(n, items, split, seed))
    z = map_batched(run.model.encode, batch.x)  # (n, …)
    flat = z.flatten(1).double()
    labels = None if batch.y is None else batch.y.cpu().numpy()
    image = plot_codes(
        flat[:MAX_PLOTTED_CODES].cpu().numpy(),
        None if labels is None else labels[:MAX_PLOTTED_CODES],
    )
    record = {
        "split": split,
        "n": len(batch),
        "code": list(z.shape[1:]),
        "norm": mean_with_error(flat.norm(dim=1)),
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
    return write_results(run, results, output_dir)
