"""genlab arithmetic: compute a − b + c on codes, or move along an attribute's direction."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.abilities import require
from genlab.batching import map_batched
from genlab.config.recipes import models_with
from genlab.console import print_table
from genlab.errors import UserError
from genlab.inference import queries
from genlab.inference.queries import ItemSelection, Space, Split
from genlab.inference.requirements import require_command
from genlab.inference.results import Results, write_results
from genlab.nn.broadcast import expand_like
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Count, Positive
from genlab.viz import image_grids

GroupBy = Literal["class", "item", "draw"]
Numbers = Count | list[Count] | None
Terms = dict[str, list[int]]  # the numbers of a, b and c


@torch.no_grad()
def arithmetic(
    run: LoadedRun,
    *,
    a: Numbers = None,
    b: Numbers = None,
    c: Numbers = None,
    group_by: GroupBy = "class",
    space: Space = "z",
    attribute: Count | None = None,
    strengths: tuple[float, ...] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    rows: Positive = 8,
    n: Positive = 1000,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Decode a − b + c of mean codes, or move codes along the direction of an attribute.

    Radford et al. 2016 (https://arxiv.org/abs/1511.06434, section 6.3.2) average the codes of three
    draws per term. The direction of an attribute is the mean code of the items that have it minus
    the mean code of the others (Larsen et al. 2016, https://arxiv.org/abs/1512.09300, section
    4.2).

    Args:
        a, b, c: the terms, each the mean of the codes with these numbers; None leaves a term out.
        group_by: what the numbers are: classes, indices of items in the split, or indices of draws
            from the prior (n draws, as `genlab sample` draws them).
        space: "w" adds and subtracts the styles of the draws.
        attribute: a class: instead of a, b and c, the first `rows` items of other classes are moved
            toward it.
        strengths: how far to move, in lengths of the direction.
        n: items whose codes give the mean of a class, or draws from the prior.

    Raises:
        UserError: the model lacks such codes; a class or item does not exist; a is not given.
    """
    require_command(run, "arithmetic")
    given = {"a": a, "b": b, "c": c}
    terms = {
        name: [k] if isinstance(k, int) else k for name, k in given.items() if k not in (None, [])
    }
    if (attribute is None) == ("a" not in terms):
        raise UserError(
            "give a=, b= and c= for a − b + c, as a=[7] b=[1] c=[0], or only attribute=<class>"
        )
    if space == "w" and (group_by != "draw" or attribute is not None):
        raise UserError(
            "space=w is for group_by=draw: items of the data lack styles; genlab project finds some"
        )
    selection = ItemSelection(n, None, split, seed)
    if attribute is not None:
        results = move_along_attribute(run, attribute, strengths, rows, selection)
    else:
        results = add_terms(run, terms, group_by, space, selection)
    return write_results(run, results, output_dir)


# --- a − b + c ------------------------------------------------------------------------------------


def add_terms(
    run: LoadedRun, terms: Terms, group_by: GroupBy, space: Space, selection: ItemSelection
) -> Results:
    """Decode the terms and their sum; see `arithmetic`."""
    codes, groups = encode_terms(run, terms, group_by, space, selection)
    means = {name: codes[groups[name]].mean(0) for name in terms}
    zero = torch.zeros_like(means["a"])
    z = means["a"] - means.get("b", zero) + means.get("c", zero)
    operands = torch.stack([*means.values(), z])
    decode = queries.decoder_for(run, space)
    decoded = map_batched(decode, operands)
    formula = "a" + (" − b" if "b" in terms else "") + (" + c" if "c" in terms else "")
    columns = [*terms, formula]
    norms = operands.flatten(1).norm(dim=1).tolist()
    record: dict[str, Any] = {
        "group_by": group_by,
        "space": space,
        **terms,
        "norms": dict(zip(columns, norms, strict=True)),
    }
    if group_by == "class":
        means_of_classes = class_means(codes, groups["labels"], run.spec.num_classes)
        record["distance_to_class"] = distances_to_classes(run, decoded[-1:], means_of_classes)
    images = {"": image_grids.render_items(decoded, run.spec)}
    if run.spec.kind == "image":
        pixels = image_grids.to_uint8_images(decoded, run.spec)
        grid = image_grids.make_grid(pixels, columns=len(decoded))
        images[""] = image_grids.add_captions(grid, columns=columns)
        if group_by != "class":
            members = {name: map_batched(decode, codes[groups[name]]) for name in terms}
            images["terms"] = render_terms(run, members)
    numbers = "-".join(f"{name}{'_'.join(map(str, ks))}" for name, ks in terms.items())
    return Results(
        f"arithmetic_{group_by}_{numbers}" + ("_w" if space == "w" else ""),
        selection.seed,
        record,
        images,
        arrays={"z": operands, "x": decoded, "direction": z - means["a"]},
    )


def encode_terms(
    run: LoadedRun, terms: Terms, group_by: GroupBy, space: Space, selection: ItemSelection
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return codes (N, …), and the indices into them for each term.

    With group_by="class" the second value also has the "labels" (N,) of all codes.
    """
    numbers = [k for ks in terms.values() for k in ks]
    if group_by == "draw":
        n = selection.n or 0
        require(run.model, "prior", lambda: models_with("prior"))
        if max(numbers) >= n:
            raise UserError(
                f"group_by=draw: there are the draws 0 to {n - 1} of n={n}, not {max(numbers)}"
            )
        torch.manual_seed(selection.seed)
        codes = queries.draw_prior_codes(run, n, space=space)
        return codes, {name: torch.tensor(ks) for name, ks in terms.items()}
    require(run.model, "encode", lambda: models_with("encode"))
    if group_by == "item":
        listed = ItemSelection(None, numbers, selection.split, selection.seed)
        batch, _ = queries.select_items(run, listed)
        parts = torch.arange(len(batch)).split([len(ks) for ks in terms.values()])
        return map_batched(run.model.encode, batch.x), dict(zip(terms, parts, strict=True))
    codes, labels = encode_labeled(run, numbers, selection)
    groups = {
        name: torch.isin(labels, torch.tensor(ks)).nonzero()[:, 0] for name, ks in terms.items()
    }
    return codes, {**groups, "labels": labels}


def distances_to_classes(run: LoadedRun, x: Tensor, means: Tensor) -> list[float]:
    """Return the distances of an item's code to the class means; print the nearest classes.

    The decoded item is encoded again, so that the distance is about the picture, not only about the
    sum of the codes.
    """
    code = map_batched(run.model.encode, x).flatten(1)
    distance = (means.flatten(1) - code).norm(dim=1)
    nearest = distance.argsort().tolist()[:3]
    print_table(
        ["nearest classes", "distance"], [[str(k), f"{distance[k].item():.4g}"] for k in nearest]
    )
    distances: list[float] = distance.tolist()
    return distances


def render_terms(run: LoadedRun, members: dict[str, Tensor]) -> np.ndarray:
    """Return a column of images for each term: the items whose codes are averaged.

    As figure 7 of Radford et al. 2016.
    """
    height = max(len(items) for items in members.values())
    blank = torch.full_like(next(iter(members.values()))[0], run.spec.range[0])
    columns = [[*items, *[blank] * height][:height] for items in members.values()]
    cells = torch.stack([x for row in zip(*columns, strict=True) for x in row])
    pixels = image_grids.to_uint8_images(cells, run.spec)
    grid = image_grids.make_grid(pixels, columns=len(members))
    return image_grids.add_captions(grid, columns=list(members))


# --- attributes -----------------------------------------------------------------------------------


def move_along_attribute(
    run: LoadedRun,
    attribute: int,
    strengths: tuple[float, ...],
    rows: int,
    selection: ItemSelection,
) -> Results:
    """Move the codes of items along the direction of a class; see `arithmetic`."""
    require(run.model, "encode", lambda: models_with("encode"))
    codes, labels = encode_labeled(run, [attribute], selection)
    has_attribute = labels == attribute
    if has_attribute.all():
        raise UserError(f"every item is of class {attribute}: nothing is left to compare it with")
    direction = codes[has_attribute].mean(0) - codes[~has_attribute].mean(0)
    start = codes[~has_attribute][:rows, None]  # (rows, 1, …)
    s = torch.tensor(strengths, dtype=codes.dtype, device=codes.device)
    z = start + expand_like(s[None], start) * direction  # (rows, S, …)
    decoded = map_batched(run.model.decode, z.flatten(0, 1))
    encoded = map_batched(run.model.encode, decoded).flatten(1)
    means = class_means(codes, labels, run.spec.num_classes).flatten(1)
    distance = torch.cdist(encoded, means).nan_to_num(nan=torch.inf)
    is_nearest = (distance.argmin(1) == attribute).view(z.shape[:2])
    fraction = is_nearest.double().mean(0)  # (S,)
    print_table(
        ["strength", f"nearest to class {attribute}"],
        [[f"{v:g}", f"{p:.0%}"] for v, p in zip(strengths, fraction, strict=True)],
    )
    items = queries.select_items(run, selection)[0].x.cpu()[~has_attribute][:rows]
    decoded = decoded.unflatten(0, z.shape[:2])
    return Results(
        f"arithmetic_attribute{attribute}",
        selection.seed,
        record={
            "attribute": attribute,
            "strengths": list(strengths),
            "norm": direction.norm().item(),
            "nearest_to_class": fraction.tolist(),
            "y": labels[~has_attribute][:rows].tolist(),
        },
        images={"": render_attribute(run, items, decoded, strengths)},
        arrays={"direction": direction, "z": z, "x": decoded},
    )


def render_attribute(
    run: LoadedRun, items: Tensor, decoded: Tensor, strengths: tuple[float, ...]
) -> np.ndarray:
    """Return a row per item: the item, and its edits (rows, S, *shape) at each strength."""
    if run.spec.kind != "image":
        return image_grids.render_items(decoded.flatten(0, 1), run.spec, reals=items)
    cells = torch.cat([items[:, None], decoded.cpu()], 1).flatten(0, 1)
    pixels = image_grids.to_uint8_images(cells, run.spec)
    columns = ["item", *(f"{v:+g}" if v else "0" for v in strengths)]
    return image_grids.add_captions(
        image_grids.make_grid(pixels, columns=len(columns)), columns=columns
    )


# --- classes --------------------------------------------------------------------------------------


def encode_labeled(
    run: LoadedRun, classes: list[int], selection: ItemSelection
) -> tuple[Tensor, Tensor]:
    """Return the codes (N, …) of the selected items, and their labels (N,) on the CPU.

    Raises:
        UserError: the data lacks labels or the class, or none of its items is selected.
    """
    if not run.spec.num_classes:
        raise UserError(
            f"{run.dataset_name} does not have labels; give group_by=item and indices of items"
        )
    batch, _ = queries.select_items(run, selection)
    if batch.y is None:
        raise UserError(f"the {selection.split} split of {run.dataset_name} does not have labels")
    for k in classes:
        if k >= run.spec.num_classes:
            raise UserError(
                f"{run.dataset_name} has the classes 0 to {run.spec.num_classes - 1}, not {k}"
            )
        if not (batch.y == k).any():
            raise UserError(f"none of the {len(batch)} items is of class {k}; give a larger n")
    return map_batched(run.model.encode, batch.x), batch.y.cpu()


def class_means(codes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean code (classes, …) of each class; nan for a class without items."""
    return torch.stack([codes[labels == k].mean(0) for k in range(classes)])
