"""genlab forecast: predict the next frames of held-out videos, as a GIF beside the truth."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.console import track
from genlab.data.dataset import SPLITS
from genlab.errors import UserError
from genlab.fileio import add_path_to_os_errors
from genlab.inference import items_and_codes
from genlab.inference.items_and_codes import ItemSelection, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.metrics.paired_translation import translate_in_batches
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, DataSpec, Positive
from genlab.viz import item_pictures

MAX_GIF_VIDEOS = 8
MAX_PICTURE_VIDEOS = 4
FRAME_DURATION_MS = 200
VIDEOS_PER_BATCH = 100  # videos forecast and measured at a time, to bound the memory
LAST_FRAME = "_of_last_frame"  # suffix for the baseline that repeats the last observed frame
BYTE_RANGE = (0.0, 255.0)


def forecast(
    run: LoadedRun,
    *,
    n: Positive | None = None,
    videos: Positive | None = 100,
    items: list[Count] | None = None,
    split: Split = "test",
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Predict n frames of each video from its first frames, and measure them.

    The squared error of each frame is summed over its pixels in [0, 1]. The baseline repeats the
    last observed frame. The frames are written as bytes.

    Args:
        n: frames; None is the number that the model predicts at once.
        videos: videos, drawn by the seed; None is all of the split.

    Raises:
        UserError: the model was not trained to forecast, or no video of the split is long enough.
    """
    request = CommandRequest.from_command_call(forecast, [run], locals())
    require_command_support(run, "forecast")
    n = n or run.spec.shape[0]
    require_long_enough_videos(run, n, split)
    longer = replace(run, open_data=lambda: run.dataset.with_target_frames(n))
    index = items_and_codes.selected_item_indices(longer, ItemSelection(videos, items, split, seed))
    torch.manual_seed(seed)
    parts = [
        forecast_and_measure_batch(
            run, items_and_codes.load_items_onto_device(longer, some, split=split, seed=seed), n
        )
        for some in track(index.split(VIDEOS_PER_BATCH), "forecasting", unit="batches")
    ]
    arrays = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    errors = {name: arrays.pop("squared_error" + name) for name in ("", LAST_FRAME)}  # (N, n)
    record: dict[str, Any] = {
        "split": split,
        "videos": len(index),
        "context": arrays["source"].shape[1],
        "n": n,
    }
    for name, error in errors.items():
        record[f"squared_error_per_frame{name}"] = mean_and_error_dict(error.mean(1))
        record[f"squared_error_by_frame{name}"] = error.mean(0).tolist()
    spec = replace(longer.dataset.spec, range=BYTE_RANGE)
    sets = [(arrays[key][:MAX_PICTURE_VIDEOS], spec) for key in ("x", "output")]
    rows = [
        torch.cat([arrays["source"], arrays[key]], 1)[:MAX_GIF_VIDEOS] for key in ("x", "output")
    ]
    results = Results(
        f"forecast{n}",
        seed,
        record,
        images={"": item_pictures.make_comparison_picture(sets, ["truth", "forecast"])},
        files={".gif": partial(write_video_gif, rows, spec)},
        arrays={"index": index, **arrays},
    )
    return write_results(run, request, results, output_dir)


def require_long_enough_videos(run: LoadedRun, n: int, split: Split) -> None:
    """Refuse more frames than the videos of a split have.

    Raises:
        UserError: names a split with longer videos, and the largest n.
    """
    longest = {name: run.dataset.max_target_frames(name) for name in SPLITS}
    most = longest[split]
    if most is None or most >= n:
        return
    context = run.spec.source.shape[0] if run.spec.source else 0
    remedies = [f"split={name}" for name in reversed(SPLITS) if longest[name] >= n][:1]
    remedies += [f"n={most}"] if most > 0 else []
    if not remedies and (others := [name for name in reversed(SPLITS) if longest[name] > 0]):
        remedies = [f"split={others[0]} n={longest[others[0]]}"]
    hint = f"; give {' or '.join(remedies)}" if remedies else ""
    raise UserError(
        f"n={n}: no {split} video of {run.dataset_name} has {context} + {n} frames, the context "
        f"and those to predict{hint}"
    )


def forecast_and_measure_batch(run: LoadedRun, batch: Batch, n: int) -> dict[str, Tensor]:
    """Predict n frames of videos: frames as bytes (N, T, C, H, W), and errors (N, n) by frame."""
    if batch.cond is None:
        raise ValueError("videos without context frames cannot be forecast")
    output = predict_frames(run, batch.cond, n)
    predictions = {"": output, LAST_FRAME: batch.cond[:, -1:].expand_as(output)}
    errors = {
        f"squared_error{name}": squared_error_per_frame(frames, batch.x, run.spec)
        for name, frames in predictions.items()
    }
    videos = {"source": batch.cond, "output": output, "x": batch.x}
    return {key: run.spec.to_bytes(video).cpu() for key, video in videos.items()} | errors


def predict_frames(run: LoadedRun, context: Tensor, n: int) -> Tensor:
    """Return the n frames (N, n, C, H, W) after the context (N, P, C, H, W).

    Predicted frames become the context of later ones.
    """
    predicted: list[Tensor] = []
    while sum(frames.shape[1] for frames in predicted) < n:
        predicted.append(translate_in_batches(run.model.translate, context, run.spec))
        context = torch.cat([context, predicted[-1].to(context)], 1)[:, -context.shape[1] :]
    return torch.cat(predicted, 1)[:, :n]


def squared_error_per_frame(x: Tensor, y: Tensor, spec: DataSpec) -> Tensor:
    """Return the squared error (N, T) of each frame, summed over its pixels in [0, 1]."""
    x, y = (clamped_gray_levels(video, spec) for video in (x, y))
    return (x - y).square().flatten(2).sum(2).cpu()


def clamped_gray_levels(x: Tensor, spec: DataSpec) -> Tensor:
    """Return values x (…) as gray levels in [0, 1], float64 (…), without dequantization noise."""
    if spec.dequantized:
        return spec.dequantized_levels(x) / max(1, spec.levels - 1)
    low, high = spec.range
    return ((x.double() - low) / (high - low)).clamp(0, 1)


def write_video_gif(rows: list[Tensor], spec: DataSpec, path: Path) -> Path:
    """Write rows of videos (N, T, C, H, W) as an animation that repeats; return its path."""
    from PIL import Image

    pages = []
    for t in range(rows[0].shape[1]):
        frames = torch.cat([row[:, t] for row in rows])  # (rows · N, C, H, W)
        pixels = item_pictures.to_uint8_images(frames, replace(spec, kind="image"))
        grid = item_pictures.make_animation_frame(pixels, columns=len(rows[0]))
        pages.append(Image.fromarray(grid))
    path.parent.mkdir(parents=True, exist_ok=True)
    with add_path_to_os_errors(path):
        pages[0].save(
            path, save_all=True, append_images=pages[1:], duration=FRAME_DURATION_MS, loop=0
        )
    return path
