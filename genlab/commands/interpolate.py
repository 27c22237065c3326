"""genlab interpolate: decode the codes between two codes, on a line or on a sphere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from genlab.batching import map_batched
from genlab.errors import UserError
from genlab.inference import items_and_codes
from genlab.inference.items_and_codes import ItemSelection, Space, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_ability, require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.nn.broadcast import expand_like
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import ClassNumber, Count, DataSpec, Positive
from genlab.viz import item_pictures
from genlab.viz.latents import plot_paths
from genlab.viz.picture import Picture, make_picture

Method = Literal["linear", "spherical"]
Endpoints = Literal["data", "prior"]
Pairs = list[tuple[Count, Count]]
MIN_SINE = 1e-4  # of the angle between two directions that are neither equal nor opposite


def interpolate_linearly(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the codes (n, T, …) at t (T,) on the straight lines from a (n, …) to b (n, …)."""
    a, b = a[:, None], b[:, None]
    t = expand_like(t[None], a)
    return (1 - t) * a + t * b


# Shoemake 1985, https://doi.org/10.1145/325334.325242: with Ω the angle between unit vectors p and
# q, slerp(t) = (sin((1 − t)Ω) p + sin(tΩ) q) / sin Ω. Draws of a Gaussian are near a sphere, which
# the straight line leaves (White 2016, https://arxiv.org/abs/1609.04468).
def interpolate_spherically(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return the codes (n, T, …) at t (T,) whose directions turn evenly from a to b.

    Their norms change linearly. Values that a and b share, such as a common class, stay constant.
    """
    shape, (a, b) = a.shape[1:], (a.flatten(1), b.flatten(1))
    shared = a == b  # (n, d)
    p, q = a.masked_fill(shared, 0), b.masked_fill(shared, 0)
    norms = interpolate_linearly(
        p.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True), t
    )  # (n, T, 1)
    p, q = torch.nn.functional.normalize(p), torch.nn.functional.normalize(q)
    # (n, 1, 1), accurate near 0 and π too.
    angle = 2 * torch.atan2((p - q).norm(dim=1), (p + q).norm(dim=1))[:, None, None]
    t = t.view(1, -1, 1)
    turned = ((1 - t) * angle).sin() * p[:, None] + (t * angle).sin() * q[:, None]
    # Equal directions need not turn, and the path between opposite ones is not unique.
    straight = interpolate_linearly(p, q, t.flatten())
    turned = torch.where(angle.sin().abs() > MIN_SINE, turned / angle.sin(), straight)
    z = torch.where(shared[:, None], a[:, None], norms * turned)
    # The ends are exact, to the last bit.
    z[:, t.flatten() == 0] = a[:, None]
    z[:, t.flatten() == 1] = b[:, None]
    return z.unflatten(2, shape)


@dataclass
class CodePairs:
    """Pairs of codes to interpolate between."""

    start: Tensor  # (n, …)
    end: Tensor  # (n, …)
    items: tuple[Tensor, Tensor] | None = None  # the items that the codes are of
    index: Tensor | None = None  # (n, 2), the indices of the items in their split


@torch.no_grad()
def interpolate(
    run: LoadedRun,
    *,
    method: Method | None = None,
    space: Space = "z",
    endpoints: Endpoints | None = None,
    pairs: Pairs | None = None,
    n: Positive = 8,
    frames: Annotated[int, Ge(2)] = 11,
    label: ClassNumber | tuple[ClassNumber, ClassNumber] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Decode `frames` codes between the ends of n pairs; write a row of images for each pair.

    Args:
        method: None is the model's `latent_interpolation`, which for the noise of a diffusion
            model is spherical (DDIM, Song et al. 2021, https://arxiv.org/abs/2010.02502, appendix
            D.5), else linear; between styles it is linear.
        space: "w" interpolates between the styles of draws from the prior.
        endpoints: codes of data (of the items in `pairs`, or n random pairs) or draws from the
            prior; None is data if the model encodes.
        label: for draws from a conditional prior, their class, or the classes at start and end.

    Raises:
        UserError: the model does not decode, or lacks such codes; an item or class does not exist.
    """
    request = CommandRequest.from_command_call(interpolate, [run], locals())
    available = require_command_support(run, "interpolate")
    if endpoints is None:
        use_data = "encode" in available and label is None and space == "z"
        endpoints = "data" if use_data else "prior"
    verb = "encode" if endpoints == "data" else "prior"
    other = {"encode": "prior", "prior": "data"}[verb]
    has_other = {"data": "encode", "prior": "prior"}[other] in available
    require_ability(run, verb, f"endpoints={other}" if has_other else "")
    if endpoints == "data":
        if space == "w":
            raise UserError(
                "space=w is for endpoints=prior: items of the data lack styles; genlab project "
                "finds some"
            )
        if label is not None:
            raise UserError(
                "label= is for endpoints=prior: items of the data have their own classes"
            )
        ends = encode_item_pairs(run, pairs, n, split=split, seed=seed)
    else:
        if pairs is not None:
            raise UserError(
                "pairs= is for endpoints=data: draws from the prior are not numbered; choose "
                "others with seed="
            )
        ends = draw_prior_code_pairs(run, n, label, space, seed=seed)
    method = method or (run.model.latent_interpolation if space == "z" else "linear")

    t = torch.linspace(0, 1, frames, dtype=ends.start.dtype, device=ends.start.device)
    path = interpolate_linearly if method == "linear" else interpolate_spherically
    z = path(ends.start, ends.end, t)  # (n, T, …)
    decoded = map_batched(items_and_codes.decoder_of_code_space(run, space), z.flatten(0, 1))
    decoded = decoded.unflatten(0, z.shape[:2])  # (n, T, *shape)

    name = f"interpolate_{endpoints}_{method}" + ("_w" if space == "w" else "")
    record = {
        "endpoints": endpoints,
        "method": method,
        "space": space,
        "n": len(z),
        "frames": frames,
        **measure_path_lengths(decoded),
    }
    results = Results(
        name,
        seed,
        record,
        images={"": render_interpolations(decoded, run.spec, ends.items)},
        arrays={"frames": decoded, "z": z, "t": t, "index": ends.index},
        items={"frames": ("pair", "frame")},
    )
    return write_results(run, request, results, output_dir)


def encode_item_pairs(
    run: LoadedRun, pairs: Pairs | None, n: int, *, split: Split, seed: int
) -> CodePairs:
    """Return the codes of the listed pairs of items, or of n random pairs."""
    listed = None if pairs is None else [k for end in zip(*pairs, strict=True) for k in end]
    batch, index = items_and_codes.load_selected_items_and_indices(
        run, ItemSelection(2 * n, listed, split, seed)
    )
    count = len(batch) // 2  # a small split has fewer pairs
    if not count:
        raise UserError(f"the {split} split of {run.dataset_name} has one item; two are needed")
    items = batch.x[:count], batch.x[count : 2 * count]
    start, end = (map_batched(run.model.encode, x) for x in items)
    return CodePairs(start, end, items, index[: 2 * count].view(2, count).T)


def draw_prior_code_pairs(
    run: LoadedRun, n: int, label: int | tuple[int, int] | None, space: Space, *, seed: int
) -> CodePairs:
    """Return n pairs of draws from the prior."""
    torch.manual_seed(seed)
    labels = label if isinstance(label, tuple) else (label, label)
    start, end = (
        items_and_codes.draw_prior_codes(
            run, n, items_and_codes.prior_label_or_default(run, k), space
        )
        for k in labels
    )
    return CodePairs(start, end)


def measure_path_lengths(decoded: Tensor) -> dict[str, Any]:
    """Return the end distance, length and longest step of paths (n, T, *shape)."""
    steps = decoded.diff(dim=1).double().flatten(2).norm(dim=2)  # (n, T − 1)
    distance = items_and_codes.squared_error_per_item(decoded[:, 0], decoded[:, -1]).sqrt()
    return {
        "distance": mean_and_error_dict(distance),
        "path_length": mean_and_error_dict(steps.sum(1)),
        "longest_step": mean_and_error_dict(steps.max(1).values),
    }


def render_interpolations(
    decoded: Tensor, spec: DataSpec, items: tuple[Tensor, Tensor] | None
) -> Picture:
    """Return a row of images for each path (n, T, C, H, W), or the curves of points.

    Args:
        items: the items at both ends, shown beside the images.
    """
    if spec.kind != "image":
        names = [f"path {i + 1}" for i in range(len(decoded))]
        return plot_paths(decoded, names, None if items is None else torch.cat(items))
    columns = [f"{i / (decoded.shape[1] - 1):.2g}" for i in range(decoded.shape[1])]
    if items is not None:
        decoded = torch.cat([items[0][:, None], decoded, items[1][:, None]], 1)
        columns = ["from", *columns, "to"]
    images = item_pictures.to_uint8_images(decoded.flatten(0, 1), spec)
    note = "one path of codes per row; above, the position on it"
    return make_picture(images, columns=decoded.shape[1], column_names=columns, note=note)
