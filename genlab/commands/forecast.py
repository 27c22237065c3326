"""genlab forecast: predict the next frames of held-out videos, as a GIF beside the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.fileio import with_filename
from genlab.inference import queries
from genlab.inference.queries import ItemSelection, Split
from genlab.inference.requirements import require_command
from genlab.inference.results import Results, mean_with_error, write_results
from genlab.metrics.context import to_bytes
from genlab.metrics.paired_translation import translate_batched
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, DataSpec, Positive
from genlab.viz import image_grids

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
    require_command(run, "forecast")
    n = n or run.spec.shape[0]
    longer = replace(run, open_data=lambda: run.dataset.with_target_frames(n))
    index = queries.select_indices(longer, ItemSelection(videos, items, split, seed))
    torch.manual_seed(seed)
    parts = [
        forecast_batch(run, queries.load_items(longer, some, split=split, seed=seed), n)
        for some in index.split(VIDEOS_PER_BATCH)
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
        record[f"squared_error_per_frame{name}"] = mean_with_error(error.mean(1))
        record[f"squared_error_by_frame{name}"] = error.mean(0).tolist()
    spec = replace(longer.dataset.spec, range=BYTE_RANGE)
    sets = [(arrays[key][:MAX_PICTURE_VIDEOS], spec) for key in ("x", "output")]
    results = Results(
        f"forecast{n}",
        seed,
        record,
        images={"": image_grids.make_comparison(sets, ["truth", "forecast"])},
        arrays={"index": index, **arrays},
    )
    written = write_results(run, results, output_dir)
    folder = Path(output_dir) if output_dir else run.folder.samples
    rows = [
        torch.cat([arrays["source"], arrays[key]], 1)[:MAX_GIF_VIDEOS] for key in ("x", "output")
    ]
    print(write_gif(rows, spec, folder / f"forecast{n}_step{run.step}_seed{seed}.gif"))
    return written


def forecast_batch(run: LoadedRun, batch: Batch, n: int) -> dict[str, Tensor]:
    """Predict n frames of videos: frames as bytes (N, T, C, H, W), and errors (N, n) by frame."""
    if batch.cond is None:
        raise ValueError("videos without context frames cannot be forecast")
    output = predict_frames(run, batch.cond, n)
    predictions = {"": output, LAST_FRAME: batch.cond[:, -1:].expand_as(output)}
    errors = {
        f"squared_error{name}": frame_errors(frames, batch.x, run.spec)
        for name, frames in predictions.items()
    }
    videos = {"source": batch.cond, "output": output, "x": batch.x}
    return {key: to_bytes(video, run.spec.range).cpu() for key, video in videos.items()} | errors


def predict_frames(run: LoadedRun, context: Tensor, n: int) -> Tensor:
    """Return the n frames (N, n, C, H, W) after the context (N, P, C, H, W).

    Predicted frames become the context of later ones.
    """
    predicted: list[Tensor] = []
    while sum(frames.shape[1] for frames in predicted) < n:
        predicted.append(translate_batched(run.model.translate, context, run.spec))
        context = torch.cat([context, predicted[-1].to(context)], 1)[:, -context.shape[1] :]
    return torch.cat(predicted, 1)[:, :n]


def frame_errors(x: Tensor, y: Tensor, spec: DataSpec) -> Tensor:
    """Return the squared error (N, T) of each frame, summed over its pixels in [0, 1]."""
    low, high = spec.range
    x, y = (((video.double() - low) / (high - low)).clamp(0, 1) for video in (x, y))
    return (x - y).square().flatten(2).sum(2).cpu()


def write_gif(rows: list[Tensor], spec: DataSpec, path: Path) -> Path:
    """Write rows of videos (N, T, C, H, W) as an animation that repeats; return its path."""
    from PIL import Image

    pages = []
    for t in range(rows[0].shape[1]):
        frames = torch.cat([row[:, t] for row in rows])  # (rows · N, C, H, W)
        pixels = image_grids.to_uint8_images(frames, replace(spec, kind="image"))
        grid = image_grids.make_grid(pixels, columns=len(rows[0]))
        pages.append(Image.fromarray(grid))
    path.parent.mkdir(parents=True, exist_ok=True)
    with with_filename(path):
        pages[0].save(
            path, save_all=True, append_images=pages[1:], duration=FRAME_DURATION_MS, loop=0
        )
    return path
