"""genlab arithmetic: codes that are added and subtracted, as a − b + c, or as the direction of an attribute."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from genlab.abilities import need
from genlab.config.recipes import able
from genlab.console import show
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.runs.loaded_run import Run
from genlab.spec import Count, Positive
from genlab.viz import image_grids

By = Literal["class", "item", "draw"]
Numbers = Count | list[Count] | None


@torch.no_grad()
def arithmetic(
    run: Run,
    *,
    a: Numbers = None,
    b: Numbers = None,
    c: Numbers = None,
    by: By = "class",
    space: queries.Space = "z",
    attribute: Count | None = None,
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    rows: Positive = 8,
    n: Positive = 1000,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Decode a − b + c of mean codes, or items' codes moved along an attribute's direction; write and return the result.

    Radford et al. 2016 (https://arxiv.org/abs/1511.06434, section 6.3.2) average the codes of three draws a term; an
    attribute's direction is the mean code of those that have it minus that of the rest (Larsen et al. 2016,
    https://arxiv.org/abs/1512.09300, section 4.2).

    Args:
        a, b, c: what each term is the mean code of; a term left out is left out of the sum.
        by: what their numbers are: classes, items of the split, or draws of the prior (of n, as `genlab sample` draws them).
        space: "w": the styles of the draws are added and subtracted.
        attribute: a class: instead of a, b and c, the first `rows` items of other classes are moved towards it.
        strengths: how far, in lengths of the direction.
        n: items whose codes give a class's mean, or draws.

    Raises:
        UserError: the model has no such codes, there is no such class or item, or nothing was asked for.
    """
    ready(run, "arithmetic")
    terms = {
        name: [k] if isinstance(k, int) else k
        for name, k in {"a": a, "b": b, "c": c}.items()
        if k not in (None, [])
    }
    if (attribute is None) == ("a" not in terms):
        raise UserError(
            "give a=, b= and c= for a − b + c, as a=[7] b=[1] c=[0], or attribute=<class> alone"
        )
    if space == "w" and (by != "draw" or attribute is not None):
        raise UserError(
            "space=w is for by=draw: items of the data have no styles; genlab project finds some"
        )
    if attribute is not None:
        return along(run, attribute, strengths, rows, n, split, seed, out)

    codes, groups = numbered(run, by, terms, n, split, seed, space)
    means = {name: codes[groups[name]].mean(0) for name in terms}
    zero = torch.zeros_like(means["a"])
    z = means["a"] - means.get("b", zero) + means.get("c", zero)
    shown = torch.stack([*means.values(), z])
    decode = queries.decoder(run, space)
    decoded = queries.through(decode, shown)
    sum_ = "a" + " − b" * ("b" in terms) + " + c" * ("c" in terms)
    record: dict[str, Any] = {
        "by": by,
        "space": space,
        **terms,
        "norms": dict(zip([*terms, sum_], norms(shown), strict=True)),
    }
    if by == "class":
        away = queries.through(run.model.encode, decoded[-1:]).flatten(
            1
        )  # what the picture's code is, not only the sum
        distance = (class_means(codes, groups["labels"], run.spec.classes).flatten(1) - away).norm(
            dim=1
        )
        record["distance_to_class"] = distance.tolist()
        nearest = distance.argsort().tolist()[:3]
        show(
            ["nearest classes", "distance"],
            [[str(k), f"{distance[k].item():.4g}"] for k in nearest],
        )
    name = "-".join(f"{key}{'_'.join(map(str, ks))}" for key, ks in terms.items())
    image = image_grids.picture(decoded, run.spec)
    if run.spec.kind == "image":
        sheet = image_grids.grid(image_grids.to_bytes(decoded, run.spec), columns=len(decoded))
        image = image_grids.captioned(sheet, columns=[*terms, sum_])
    images = {"": image}
    if (
        by != "class" and run.spec.kind == "image"
    ):  # what each term is the mean of (Radford et al. 2016, figure 7)
        most = max(len(ks) for ks in terms.values())
        blank = torch.full_like(decoded[0], run.spec.range[0])
        columns = [
            [*queries.through(decode, codes[groups[term]]), *[blank] * most][:most]
            for term in terms
        ]
        sheet = torch.stack([x for row in zip(*columns, strict=True) for x in row])
        sheet = image_grids.grid(image_grids.to_bytes(sheet, run.spec), columns=len(terms))
        images["terms"] = image_grids.captioned(sheet, columns=list(terms))
    return queries.write(
        run, f"arithmetic_{by}_{name}" + "_w" * (space == "w"), seed=seed, out=out, images=images, record=record,
        arrays={"z": shown, "x": decoded, "direction": z - means["a"]},
    )  # fmt: skip


def numbered(
    run: Run,
    by: By,
    terms: dict[str, list[int]],
    n: int,
    split: str,
    seed: int,
    space: queries.Space,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return codes (N, …), and for each term which of them it means; by class also the "labels" (N,) of all."""
    if by == "draw":
        need(run.model, "prior", lambda: able("prior"))
        most = max(k for ks in terms.values() for k in ks)
        if most >= n:
            raise UserError(f"by=draw: there are the draws 0 to {n - 1} of n={n}, not {most}")
        torch.manual_seed(seed)
        return queries.draw(run, n, space=space), {
            name: torch.tensor(ks) for name, ks in terms.items()
        }
    need(run.model, "encode", lambda: able("encode"))
    if by == "item":
        held, _ = queries.items(run, split, None, seed, [k for ks in terms.values() for k in ks])
        parts = torch.arange(len(held)).split([len(ks) for ks in terms.values()])
        return queries.through(run.model.encode, held.x), dict(zip(terms, parts, strict=True))
    codes, labels = labelled(run, [k for ks in terms.values() for k in ks], n, split, seed)
    groups = {
        name: torch.isin(labels, torch.tensor(ks)).nonzero()[:, 0] for name, ks in terms.items()
    }
    return codes, {**groups, "labels": labels}


def labelled(run: Run, classes: list[int], n: int, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return the codes (N, …) of n items and their labels (N,) on the CPU.

    Raises:
        UserError: the data has no labels, no such class, or none of it among the items.
    """
    data = run.info["dataset"]
    if not run.spec.classes:
        raise UserError(f"{data} has no labels; give by=item and numbers of items")
    held, _ = queries.items(run, split, n, seed)
    for k in classes:
        if k >= run.spec.classes:
            raise UserError(f"{data} has the classes 0 to {run.spec.classes - 1}, not {k}")
        if not (held.y == k).any():
            raise UserError(f"none of the {len(held)} items is of class {k}; give a larger n")
    return queries.through(run.model.encode, held.x), held.y.cpu()


def class_means(codes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean code (classes, …) of each class; of one that no item is of, nan."""
    return torch.stack([codes[labels == k].mean(0) for k in range(classes)])


def along(
    run: Run,
    attribute: int,
    strengths: tuple[float, ...],
    rows: int,
    n: int,
    split: str,
    seed: int,
    out: str | None,
) -> dict[str, Any]:
    """Move the codes of items along the direction of a class; see `arithmetic`."""
    need(run.model, "encode", lambda: able("encode"))
    codes, labels = labelled(run, [attribute], n, split, seed)
    has = labels == attribute
    if has.all():
        raise UserError(
            f"every item is of class {attribute}: there is no rest that it differs from"
        )
    direction = codes[has].mean(0) - codes[~has].mean(0)
    start = codes[~has][:rows]  # (rows, …)
    s = torch.tensor(strengths, dtype=codes.dtype, device=codes.device)
    z = start[:, None] + s.view(1, -1, *[1] * direction.dim()) * direction  # (rows, S, …)
    decoded = queries.through(run.model.decode, z.flatten(0, 1))
    again = queries.through(run.model.encode, decoded).flatten(1)
    middles = class_means(codes, labels, run.spec.classes).flatten(1)
    far = torch.cdist(again, middles).nan_to_num(nan=torch.inf)
    share = (far.argmin(1) == attribute).view(z.shape[:2]).double().mean(0)  # (S,)
    show(
        ["strength", f"nearest to class {attribute}"],
        [[f"{v:g}", f"{p:.0%}"] for v, p in zip(strengths, share, strict=True)],
    )
    held = queries.items(run, split, n, seed)[0].x.cpu()[~has][:rows]
    image = image_grids.picture(decoded, run.spec, reals=held)
    if run.spec.kind == "image":
        sheets = torch.cat([held[:, None], decoded.cpu().unflatten(0, z.shape[:2])], 1).flatten(
            0, 1
        )
        sheet = image_grids.grid(image_grids.to_bytes(sheets, run.spec), columns=1 + len(strengths))
        image = image_grids.captioned(
            sheet, columns=["item", *(f"{v:+g}" if v else "0" for v in strengths)]
        )
    return queries.write(
        run, f"arithmetic_attribute{attribute}", seed=seed, out=out, images={"": image},
        record={
            "attribute": attribute, "strengths": list(strengths), "norm": direction.norm().item(),
            "nearest_to_its_class": share.tolist(), "y": labels[~has][:rows].tolist(),
        },
        arrays={"direction": direction, "z": z, "x": decoded.unflatten(0, z.shape[:2])},
    )  # fmt: skip


def norms(z: Tensor) -> list[float]:
    """Return the norm of each code (N, …)."""
    return z.flatten(1).norm(dim=1).tolist()
