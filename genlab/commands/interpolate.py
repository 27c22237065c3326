"""genlab interpolate: what lies between two codes, on the straight line or on the sphere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.abilities import need
from genlab.config.recipes import able
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive, Spec
from genlab.viz import image_grids
from genlab.viz.latents import lines

How = Literal["linear", "spherical"]


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the codes (n, T, …) at t (T,) on the straight lines from a (n, …) to b (n, …)."""
    t = t.view(1, -1, *[1] * (a.dim() - 1))
    return (1 - t) * a[:, None] + t * b[:, None]


# Shoemake 1985, https://doi.org/10.1145/325334.325242: with Ω the angle between unit vectors p and q,
# slerp(t) = (sin((1 − t)Ω) p + sin(tΩ) q) / sin Ω. A Gaussian's draws lie near a sphere, which the straight line leaves
# (White 2016, https://arxiv.org/abs/1609.04468).
def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the codes (n, T, …) at t (T,) whose directions turn evenly from a's to b's and whose norms change evenly.

    Values that both ends share, such as a class both are of, stay as they are: the others turn.
    """
    shape, (a, b) = a.shape[1:], (a.flatten(1), b.flatten(1))
    shared = a == b  # (n, d)
    p, q = a.masked_fill(shared, 0), b.masked_fill(shared, 0)
    norms = linear(p.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True), t)  # (n, T, 1)
    p, q = torch.nn.functional.normalize(p), torch.nn.functional.normalize(q)
    angle = (
        2 * torch.atan2((p - q).norm(dim=1), (p + q).norm(dim=1))[:, None, None]
    )  # (n, 1, 1): exact near 0 and π too
    t = t.view(1, -1, 1)
    turned = ((1 - t) * angle).sin() * p[:, None] + (t * angle).sin() * q[:, None]
    straight = linear(
        p, q, t.flatten()
    )  # where both directions are one there is nothing to turn, and where opposite no way
    turned = torch.where(angle.sin().abs() > 1e-4, turned / angle.sin(), straight)
    z = torch.where(shared[:, None], a[:, None], norms * turned)
    z[:, t.flatten() == 0], z[:, t.flatten() == 1] = (
        a[:, None],
        b[:, None],
    )  # the ends themselves, to the last bit
    return z.unflatten(2, shape)


@torch.no_grad()
def interpolate(
    run: Run,
    *,
    how: How | None = None,
    space: queries.Space = "z",
    between: Literal["data", "prior"] | None = None,
    pairs: list[tuple[Count, Count]] | None = None,
    n: Positive = 8,
    frames: Annotated[int, Ge(2)] = 11,
    y: Count | tuple[Count, Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Decode `frames` codes on the way between n pairs; write them as rows of a picture and as arrays, return numbers.

    Args:
        how: None: as the model says of its codes by `between_codes`, which of a diffusion model's noise is spherical (DDIM, Song
            et al. 2021, https://arxiv.org/abs/2010.02502, appendix D.5); else, and between styles, linear.
        space: "w": between styles of draws of the prior.
        between: codes of data (of those in `pairs`, or n drawn pairs) or draws of the prior; None: data where it encodes.
        y: of draws of a conditional prior: their class, or the classes at the beginning and at the end.

    Raises:
        UserError: the model does not decode, or has no codes of that sort; there is no such item or class.
    """
    has = ready(run, "interpolate")
    between = between or ("data" if "encode" in has and y is None and space == "z" else "prior")
    verb = "encode" if between == "data" else "prior"
    need(run.model, verb, lambda: able(verb))
    if between == "data":
        if space == "w":
            raise UserError(
                "space=w is for between=prior: items of the data have no styles; genlab project finds some"
            )
        if y is not None:
            raise UserError("y= is for between=prior: items of the data have classes of their own")
        listed = None if pairs is None else [k for end in zip(*pairs, strict=True) for k in end]
        held, index = queries.items(run, split, 2 * n, seed, listed)
        count = len(held) // 2  # a small split has fewer pairs
        if not count:
            raise UserError(
                f"the {split} split of {run.info['dataset']} has one item; two are needed"
            )
        ends = held.x[:count], held.x[count : 2 * count]
        a, b = (queries.through(run.model.encode, x) for x in ends)
        index = index[: 2 * count].view(2, count).T
    else:
        if pairs is not None:
            raise UserError(
                "pairs= is for between=data: draws of the prior have no numbers; choose others with seed="
            )
        torch.manual_seed(seed)
        a, b = (
            queries.draw(run, n, queries.one_class(run, k), space)
            for k in (y if isinstance(y, tuple) else (y, y))
        )
        ends, index = None, None

    how = how or (getattr(run.model, "between_codes", "linear") if space == "z" else "linear")
    t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)
    z = (linear if how == "linear" else spherical)(a, b, t)  # (n, T, …)
    decoded = queries.through(queries.decoder(run, space), z.flatten(0, 1)).unflatten(
        0, z.shape[:2]
    )  # (n, T, *shape)
    steps = decoded.diff(dim=1).double().flatten(2).norm(dim=2)  # (n, T − 1)
    return queries.write(
        run, f"interpolate_{between}_{how}" + "_w" * (space == "w"), seed=seed, out=out,
        record={
            "between": between, "how": how, "space": space, "n": len(a), "frames": frames,
            "distance": queries.mean(queries.squared_error(decoded[:, 0], decoded[:, -1]).sqrt()),
            "length_of_the_way": queries.mean(steps.sum(1)),
            "longest_step": queries.mean(steps.max(1).values),
        },
        images={"": picture(decoded, run.spec, ends)},
        arrays={"frames": decoded, "z": z, "t": t, "index": index},
    )  # fmt: skip


def picture(decoded: Tensor, spec: Spec, ends: tuple[Tensor, Tensor] | None) -> np.ndarray:
    """Return a row of images for each way (n, T, C, H, W), between the items that its ends are codes of; points as curves."""
    if spec.kind != "image":
        return lines(decoded, None if ends is None else torch.cat(ends))
    columns = [f"{i / (decoded.shape[1] - 1):.2g}" for i in range(decoded.shape[1])]
    if ends is not None:
        decoded = torch.cat([ends[0][:, None], decoded, ends[1][:, None]], 1)
        columns = ["from", *columns, "to"]
    sheet = image_grids.grid(
        image_grids.to_bytes(decoded.flatten(0, 1), spec), columns=decoded.shape[1]
    )
    return image_grids.captioned(sheet, columns=columns)
