"""Translate a film frame by frame, and measure how steady the result is."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genlab.console import track
from genlab.data.films import Film, read_film, write_film_as_gif
from genlab.errors import UserError
from genlab.inference.image_to_image import (
    bytes_to_model_input,
    make_translation_direction,
    require_gray_or_rgb_model,
    spec_of_sources,
    translate_any_size,
)
from genlab.inference.output_files import CommandRequest
from genlab.inference.results import Results, write_results
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import DataSpec
from genlab.tables import print_wrapped
from genlab.viz import item_pictures
from genlab.viz.figures import (
    DATA_COLOR,
    FONT_SIZE,
    SAMPLE_COLOR,
    add_legend,
    canvas_to_picture,
    make_canvas_and_axes,
)
from genlab.viz.picture import Picture

MAX_FRAMES_SHOWN = 8
BYTE_RANGE = (0.0, 255.0)


def translate_film(
    run: LoadedRun,
    request: CommandRequest,
    input_file: str,
    *,
    seed: int,
    output_dir: str | None,
    backward: bool = False,
) -> dict[str, Any]:
    """Translate each frame of a film; write a GIF with the same times, and what changes in it.

    Every frame gets the same noise of a random translator, which would flicker otherwise.

    Raises:
        UserError: the file is not a film, or the model does not take gray or RGB images of its
            size.
    """
    direction = make_translation_direction(run, backward=backward)
    spec, source_spec = direction.spec, spec_of_sources(direction.spec)
    require_gray_or_rgb_model(run, spec, source_spec, "input_file")
    path = Path(input_file).expanduser()
    film = read_film(path, source_spec.shape[0], "input_file")
    frames = []
    for frame in track(film.frames.split(1), "translating", unit="frames"):
        torch.manual_seed(seed)
        try:
            x = bytes_to_model_input(run, frame, source_spec)
            frames.append(spec.to_bytes(translate_any_size(run, direction, x)))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    output = Film(torch.cat(frames), film.durations_ms, film.loop)
    measured = measure_steadiness(film.frames, output.frames)
    name = f"{request.command}_backward" if backward else request.command
    record: dict[str, Any] = {"input_file": str(path), "task": spec.task}
    record |= {"backward": True} if backward else {}
    record |= {
        "n": len(film.frames),
        "durations_ms": film.durations_ms,
        "seconds": sum(film.durations_ms) / 1000,
        **measured,
    }
    print_wrapped(describe_film(film, output))
    print_wrapped(describe_steadiness(measured))
    results = Results(
        f"{name}_{path.stem}",
        seed,
        record,
        images={
            "": render_film_rows(film, output, describe_steadiness(measured)),
            "changes": plot_changes(measured),
        },
        files={".gif": partial(write_film_as_gif, output)},
        arrays={"output": output.frames, "source": film.frames},
    )
    return write_results(run, request, results, output_dir)


def refuse_input_file(run: LoadedRun, input_file: str | None, purpose: str) -> None:
    """Refuse a film for a model that was not trained to translate.

    Raises:
        UserError: a film is given.
    """
    if input_file is not None:
        raise UserError(
            f"input_file= is for models trained to {purpose}; {run.name} works on items of its "
            "dataset"
        )


def refuse_film_beside_folder(input_dir: str | None, input_file: str | None) -> None:
    """Refuse two inputs.

    Raises:
        UserError: both are given.
    """
    if input_dir is not None and input_file is not None:
        raise UserError("give input_dir=, a folder of images, or input_file=, a film, not both")


# --- temporal consistency -------------------------------------------------------------------------


# A warping-free measure, which does not need the motion: the change of a frame to the next one is
# the mean absolute difference of the gray levels (means over the channels). It is divided by the
# standard deviation of all gray levels of the film, so that a translation with more contrast does
# not count as flicker. The ratio of the output's relative change to the source's is 1 for a
# translator that changes nothing, and above 1 for one that flickers.
def measure_steadiness(source: Tensor, output: Tensor) -> dict[str, Any]:
    """Return how much neighboring frames change, in the output and in the source.

    Args:
        source, output: bytes uint8 (T, C, H, W) and (T, C', H', W').

    Returns:
        `change_ratio`: the output's change relative to its contrast, over the source's; None if
        one of them does not change or is of one gray level. `still_change`: the mean change of the
        output in gray levels of 255, where the source does not change at all, and `still_fraction`
        the fraction of such pixels. `change_by_frame`: the relative changes (T − 1).
    """
    x, y = (frames.double().mean(1) for frames in (source, output))  # (T, H, W)
    changes = {"source": x.diff(dim=0).abs(), "output": y.diff(dim=0).abs()}
    contrast = {name: v.std(correction=0).item() for name, v in (("source", x), ("output", y))}
    relative = {
        name: (change.mean((1, 2)) / contrast[name]).tolist() if contrast[name] else None
        for name, change in changes.items()
    }
    total = {name: math.fsum(values or []) for name, values in relative.items()}
    ratio = total["output"] / total["source"] if total["source"] and relative["output"] else None
    is_still = (source.diff(dim=0) == 0).all(1)  # bytes wrap around, but 0 is 0
    is_still = interpolate(is_still[:, None].double(), y.shape[1:], mode="nearest")[:, 0] > 0.5
    still = changes["output"][is_still]
    return {
        "change_ratio": ratio,
        "still_change": still.mean().item() if len(still) else None,
        "still_fraction": is_still.double().mean().item(),
        "change_by_frame": relative,
    }


def describe_film(film: Film, output: Film) -> str:
    """Return the sizes and the length of a film in words."""
    height, width = film.frames.shape[-2:]
    new_height, new_width = output.frames.shape[-2:]
    size = f"{width}×{height}"
    if (height, width) != (new_height, new_width):
        size += f" to {new_width}×{new_height}"
    seconds = sum(film.durations_ms) / 1000
    return f"{len(film.frames):,} frames of {size} pixels, {seconds:.2f} s"


def describe_steadiness(measured: dict[str, Any]) -> str:
    """Return the measures of temporal consistency in words."""
    ratio, still = measured["change_ratio"], measured["still_change"]
    parts = ["neighboring frames: the source or the output does not change"]
    if ratio is not None:
        parts = [f"neighboring frames change {ratio:.3f} times as much as the source's"]
    if still is not None:
        share = measured["still_fraction"]
        parts.append(f"still pixels of the source ({share:.0%}) change by {still:.2f} of 255")
    return "; ".join(parts)


# --- pictures -------------------------------------------------------------------------------------


def render_film_rows(film: Film, output: Film, note: str) -> Picture:
    """Return a row of source frames over their translations, with the time above each."""
    shown = torch.linspace(0, len(film.frames) - 1, min(MAX_FRAMES_SHOWN, len(film.frames))).long()
    parts = [
        (frames[shown].float(), DataSpec(tuple(frames.shape[1:]), range=BYTE_RANGE))
        for frames in (film.frames, output.frames)
    ]
    picture = item_pictures.make_comparison_picture(parts, ["source", "output"])
    starts = torch.tensor([0, *film.durations_ms]).cumsum(0) / 1000
    times = [f"{starts[i]:.2f} s" for i in shown]
    return Picture(
        picture.images, picture.columns, picture.gap, picture.row_names, times, note=note
    )


def plot_changes(measured: dict[str, Any]) -> Picture:
    """Plot the relative change of each frame to the next one, of the source and of the output."""
    canvas, (axes,) = make_canvas_and_axes(8, 4)
    relative = measured["change_by_frame"]
    for name, color in (("source", DATA_COLOR), ("output", SAMPLE_COLOR)):
        if relative[name] is not None:
            steps = range(1, len(relative[name]) + 1)
            axes.plot(steps, relative[name], "o-", color=color, label=name, markersize=4)
    axes.set_xlabel("frame", fontsize=FONT_SIZE)
    axes.set_ylabel("change from the frame before\n(fraction of the contrast)", fontsize=FONT_SIZE)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    add_legend(axes, 2)
    return canvas_to_picture(canvas, describe_steadiness(measured))
