"""genlab encode: the codes of data as an .npz file for other programs, and where they lie as a picture."""

from __future__ import annotations

from typing import Any

from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive
from genlab.viz.latents import latent_scatter

SHOWN = 2000  # codes in the picture: more would hide each other


def encode(
    run: Run,
    *,
    n: Positive | None = None,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Write the codes of n items (None: all), or of those listed, with their labels; return the numbers.

    Raises:
        UserError: the model does not encode, or there is no such item.
    """
    ready(run, "encode")
    held, index = queries.items(run, split, n, seed, items)
    z = queries.through(run.model.encode, held.x)  # (n, …)
    flat = z.flatten(1).double()
    record = {
        "split": split, "n": len(held), "code": list(z.shape[1:]), "norm": queries.mean(flat.norm(dim=1)),
        "mean": flat.mean(0).tolist(), "std": flat.std(0, correction=0).tolist(),
    }  # fmt: skip
    labels = None if held.y is None else held.y.cpu().numpy()
    image = latent_scatter(flat[:SHOWN].cpu().numpy(), None if labels is None else labels[:SHOWN])
    arrays = {"z": z, "y": labels, "index": index}
    return queries.write(
        run, f"encode_{split}", seed=seed, out=out, record=record, images={"": image}, arrays=arrays
    )
