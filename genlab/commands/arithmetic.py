"""genlab arithmetic: compute a − b + c on codes, or move along an attribute's direction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.batching import map_batched
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.items_and_codes import ItemSelection, Space, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_ability, require_command_support
from genlab.inference.results import Results, write_results
from genlab.nn.broadcast import expand_like
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, IsClass, Positive
from genlab.tables import print_table
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_picture

GroupBy = Literal["class", "item", "draw"]
Number = Annotated[Count, IsClass("group_by", "class")]
Numbers = Number | list[Number] | None
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
    attribute: ClassNumber | None = None,
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
    request = CommandRequest.from_command_call(arithmetic, [run], locals())
    require_command_support(run, "arithmetic")
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
        results = decode_a_minus_b_plus_c(run, terms, group_by, space, selection)
    return write_results(run, request, results, output_dir)


# --- a − b + c ------------------------------------------------------------------------------------


def decode_a_minus_b_plus_c(
    run: LoadedRun, terms: Terms, group_by: GroupBy, space: Space, selection: ItemSelection
) -> Results:
    """Decode the terms and their sum; see `arithmetic`."""
    codes, groups = codes_and_indices_of_terms(run, terms, group_by, space, selection)
    means = {name: codes[groups[name]].mean(0) for name in terms}
    zero = torch.zeros_like(means["a"])
    z = means["a"] - means.get("b", zero) + means.get("c", zero)
    operands = torch.stack([*means.values(), z])
    decode = items_and_codes.decoder_of_code_space(run, space)
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
        means_of_classes = mean_code_per_class(codes, groups["labels"], run.spec.num_classes)
        record["distance_to_class"] = distances_to_class_means(run, decoded[-1:], means_of_classes)
    images = {"": item_pictures.render_items_as_picture(decoded, run.spec)}
    if run.spec.kind == "image":
        pixels = item_pictures.to_uint8_images(decoded, run.spec)
        images[""] = make_picture(pixels, columns=len(decoded), column_names=columns)
        if group_by != "class":
            members = {name: map_batched(decode, codes[groups[name]]) for name in terms}
            images["terms"] = render_averaged_items(run, members)
    return Results(
        f"arithmetic_{group_by}" + ("_w" if space == "w" else ""),
        selection.seed,
        record,
        images,
        arrays={"z": operands, "x": decoded, "direction": z - means["a"]},
        items={"x": ()},
    )


def codes_and_indices_of_terms(
    run: LoadedRun, terms: Terms, group_by: GroupBy, space: Space, selection: ItemSelection
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return codes (N, …), and the indices into them for each term.

    With group_by="class" the second value also has the "labels" (N,) of all codes.
    """
    numbers = [k for ks in terms.values() for k in ks]
    if group_by == "draw":
        n = selection.n or 0
        require_ability(run, "prior")
        if max(numbers) >= n:
            raise UserError(
                f"group_by=draw: there are the draws 0 to {n - 1} of n={n}, not {max(numbers)}"
            )
        torch.manual_seed(selection.seed)
        codes = items_and_codes.draw_prior_codes(run, n, space=space)
        return codes, {name: torch.tensor(ks) for name, ks in terms.items()}
    of_draws = "group_by=draw (a, b and c number draws from its prior)"
    require_ability(run, "encode", of_draws if "prior" in abilities(run.model) else "")
    if group_by == "item":
        listed = ItemSelection(None, numbers, selection.split, selection.seed)
        batch, _ = items_and_codes.load_selected_items_and_indices(run, listed)
        parts = torch.arange(len(batch)).split([len(ks) for ks in terms.values()])
        return map_batched(run.model.encode, batch.x), dict(zip(terms, parts, strict=True))
    codes, labels = encode_items_with_labels(run, numbers, selection)
    groups = {
        name: torch.isin(labels, torch.tensor(ks)).nonzero()[:, 0] for name, ks in terms.items()
    }
    return codes, {**groups, "labels": labels}


def distances_to_class_means(run: LoadedRun, x: Tensor, means: Tensor) -> list[float]:
    """Return the distances of an item's code to the class means; print the nearest classes.

    The decoded item is encoded again, so that the distance is about the picture, not only about the
    sum of the codes.
    """
    code = map_batched(run.model.encode, x).flatten(1)
    distance = (means.flatten(1) - code).norm(dim=1)
    nearest = distance.argsort().tolist()[:3]
    print_table(
        ["nearest classes", "distance"],
        [[run.spec.class_name(k), f"{distance[k].item():.4g}"] for k in nearest],
    )
    distances: list[float] = distance.tolist()
    return distances


def render_averaged_items(run: LoadedRun, members: dict[str, Tensor]) -> Picture:
    """Return a column of images for each term: the items whose codes are averaged.

    As figure 7 of Radford et al. 2016.
    """
    height = max(len(items) for items in members.values())
    blank = torch.full_like(next(iter(members.values()))[0], run.spec.range[0])
    columns = [[*items, *[blank] * height][:height] for items in members.values()]
    cells = torch.stack([x for row in zip(*columns, strict=True) for x in row])
    pixels = item_pictures.to_uint8_images(cells, run.spec)
    note = "the items whose codes are averaged, one column per term"
    return make_picture(pixels, columns=len(members), column_names=list(members), note=note)


# --- attributes -----------------------------------------------------------------------------------


def move_along_attribute(
    run: LoadedRun,
    attribute: int,
    strengths: tuple[float, ...],
    rows: int,
    selection: ItemSelection,
) -> Results:
    """Move the codes of items along the direction of a class; see `arithmetic`."""
    require_ability(run, "encode")
    codes, labels = encode_items_with_labels(run, [attribute], selection)
    has_attribute = labels == attribute
    if has_attribute.all():
        name = run.spec.class_name(attribute)
        raise UserError(f"every item is of class {name}: nothing is left to compare it with")
    direction = codes[has_attribute].mean(0) - codes[~has_attribute].mean(0)
    start = codes[~has_attribute][:rows, None]  # (rows, 1, …)
    s = torch.tensor(strengths, dtype=codes.dtype, device=codes.device)
    z = start + expand_like(s[None], start) * direction  # (rows, S, …)
    decoded = map_batched(run.model.decode, z.flatten(0, 1))
    encoded = map_batched(run.model.encode, decoded).flatten(1)
    means = mean_code_per_class(codes, labels, run.spec.num_classes).flatten(1)
    distance = torch.cdist(encoded, means).nan_to_num(nan=torch.inf)
    is_nearest = (distance.argmin(1) == attribute).view(z.shape[:2])
    fraction = is_nearest.double().mean(0)  # (S,)
    print_table(
        ["strength", f"nearest to class {run.spec.class_name(attribute)}"],
        [[f"{v:g}", f"{p:.0%}"] for v, p in zip(strengths, fraction, strict=True)],
    )
    items = items_and_codes.load_selected_items_and_indices(run, selection)[0].x.cpu()[
        ~has_attribute
    ][:rows]
    decoded = decoded.unflatten(0, z.shape[:2])
    return Results(
        "arithmetic_attribute",
        selection.seed,
        record={
            "attribute": attribute,
            "strengths": list(strengths),
            "norm": direction.norm().item(),
            "nearest_to_class": fraction.tolist(),
            "y": labels[~has_attribute][:rows].tolist(),
        },
        images={"": render_attribute_edits(run, items, decoded, strengths)},
        arrays={"direction": direction, "z": z, "x": decoded},
        items={"x": ("item", "strength")},
    )


def render_attribute_edits(
    run: LoadedRun, items: Tensor, decoded: Tensor, strengths: tuple[float, ...]
) -> Picture:
    """Return a row per item: the item, and its edits (rows, S, *shape) at each strength."""
    if run.spec.kind != "image":
        edits = decoded.flatten(0, 1)
        return item_pictures.render_items_as_picture(edits, run.spec, reals=items, name="edits")
    cells = torch.cat([items[:, None], decoded.cpu()], 1).flatten(0, 1)
    pixels = item_pictures.to_uint8_images(cells, run.spec)
    columns = ["item", *(f"{v:+g}" if v else "0" for v in strengths)]
    note = "items moved along the direction of a class, by so many lengths of it"
    return make_picture(pixels, columns=len(columns), column_names=columns, note=note)


# --- classes --------------------------------------------------------------------------------------


def encode_items_with_labels(
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
    batch, _ = items_and_codes.load_selected_items_and_indices(run, selection)
    if batch.y is None:
        raise UserError(f"the {selection.split} split of {run.dataset_name} does not have labels")
    for k in classes:
        if k >= run.spec.num_classes:
            raise UserError(
                f"{run.dataset_name} has the classes 0 to {run.spec.num_classes - 1}, not {k}"
            )
        if not (batch.y == k).any():
            name = run.spec.class_name(k)
            raise UserError(f"none of the {len(batch)} items is of class {name}; give a larger n")
    return map_batched(run.model.encode, batch.x), batch.y.cpu()


def mean_code_per_class(codes: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean code (classes, …) of each class; nan for a class without items."""
    return torch.stack([codes[labels == k].mean(0) for k in range(classes)])
