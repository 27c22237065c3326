"""genlab traverse: one dimension of the code at a time, from end to end; a code of two dimensions as one whole map."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.abilities import abilities, need
from genlab.errors import UserError
from genlab.spec import Count, Positive, PositiveFloat
from genlab.tasks import asking, pictures
from genlab.tasks.catalogue import able
from genlab.tasks.latent import lines, manifold, prior_axes, range_axes
from genlab.tasks.needs import ready
from genlab.tasks.run import Run
from genlab.tasks.tables import show


@torch.no_grad()
def traverse(
    run: Run,
    *,
    space: asking.Space = "z",
    dims: list[Count] | None = None,
    n: Positive = 10,
    frames: Annotated[int, Ge(2)] = 11,
    span: PositiveFloat = 2.5,
    item: Count | None = None,
    y: Count | None = None,
    split: asking.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Move single dimensions of a code by ± `span` standard deviations; write a row each and return each one's effect.

    A dimension's effect is the squared difference of the items at its two ends. The mean and spread are the prior's, or
    without one those of data's codes.

    Args:
        space: "w": the dimensions of the prior's styles.
        dims: numbers of the dimensions; None: the n that have the most effect.
        item: the test item at whose code to start; None: the mean code.
        y: the class of a conditional prior; None: class 0.

    Raises:
        UserError: the model does not decode, or there is no such dimension, item or class.
    """
    ready(run, "traverse")
    if space == "w" and item is not None:
        raise UserError("item= is for space=z: items of the data have no styles; genlab project finds some")
    codes = asking.reference(run, split, seed, asking.one_class(run, y, default=0), space)  # (N, …)
    shape, codes = codes.shape[1:], codes.flatten(1)
    middle, spread = codes.mean(0), codes.std(0)  # (d,)
    if item is None:
        start = middle
    else:
        need(run.model, "encode", lambda: able("encode"))
        start = run.model.encode(asking.items(run, split, None, seed, [item])[0].x).flatten()
    for k in dims or ():
        if k >= len(middle):
            raise UserError(f"dims={dims}: the code of {run.name} has the dimensions 0 to {len(middle) - 1}")

    whole = asking.decoder(run, space)

    def decode(z: Tensor) -> Tensor:  # (N, d) to (N, *shape)
        return asking.through(lambda part: whole(part.unflatten(1, shape)), z)

    def moved(k: int, t: Tensor) -> Tensor:  # the codes (T, d) with dimension k at each of t (T,)
        z = start.repeat(len(t), 1)
        z[:, k] = middle[k] + t * spread[k]
        return z

    t = torch.linspace(-span, span, frames, dtype=codes.dtype, device=codes.device)
    ends = [decode(torch.cat([moved(k, t[[0, -1]]) for k in part])) for part in torch.arange(len(middle)).split(asking.AT_ONCE)]
    effect = asking.squared_error(*torch.cat(ends).unflatten(0, (-1, 2)).unbind(1))  # (d,)
    order = effect.argsort(descending=True, stable=True).tolist()
    dims = order[:n] if dims is None else dims
    decoded = decode(torch.cat([moved(k, t) for k in dims])).unflatten(0, (len(dims), frames))  # (n, T, *shape)

    if run.spec.kind == "image":
        sheet = pictures.grid(pictures.to_bytes(decoded.flatten(0, 1), run.spec), columns=frames)
        sheet = pictures.captioned(
            sheet, rows=[f"{space}{k}" for k in dims], columns=[f"{v:+.2g}σ" if v else "0" for v in t.tolist()]
        )
    else:
        sheet = lines(decoded)
    images: dict[str, np.ndarray] = {"": sheet}
    if shape == (2,):
        axes = prior_axes if "prior" in abilities(run.model) else range_axes
        images["manifold"] = manifold(whole, run.spec, axes(codes))
    show(["dimension", "effect"], [[str(k), f"{effect[k].item():.4g}"] for k in dims])
    return asking.write(
        run, "traverse" + "_w" * (space == "w"), seed=seed, out=out, images=images,
        record={"space": space, "dims": dims, "frames": frames, "span": span, "item": item, "y": y, "effect": effect.tolist()},
        arrays={"frames": decoded, "t": t, "dims": np.array(dims), "start": start.unflatten(0, shape), "effect": effect},
    )  # fmt: skip
