"""genlab forecast: predict the future of a series, or the next frames of videos."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from torch import Tensor

from genlab.abilities import abilities
from genlab.console import track
from genlab.data.dataset import SPLITS
from genlab.errors import UserError
from genlab.fileio import add_path_to_os_errors, atomic_write
from genlab.inference import items_and_codes
from genlab.inference.action_planning import (
    Planner,
    act_in_simulation,
    distances_to_target,
    predict_frames_under_actions,
    simulate,
)
from genlab.inference.items_and_codes import ItemSelection, Split
from genlab.inference.output_files import CommandRequest
from genlab.inference.requirements import require_command_support
from genlab.inference.results import Results, mean_and_error_dict, write_results
from genlab.inference.series_forecasts import (
    LEVELS,
    PERCENTS,
    Origin,
    draw_futures,
    find_origin,
    make_fans,
    quantiles_of_draws,
    true_future,
)
from genlab.metrics.crps import fair_crps
from genlab.metrics.paired_translation import translate_in_batches
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, DataSpec, NonNegative, Positive
from genlab.tables import print_table
from genlab.untrusted.files import half_memory_bytes
from genlab.untrusted.text import to_csv_cell
from genlab.viz import item_pictures
from genlab.viz.fan_charts import plot_fans
from genlab.viz.figures import canvas_to_picture, make_canvas_and_axes
from genlab.viz.picture import Picture

MAX_GIF_VIDEOS = 8
MAX_PICTURE_VIDEOS = 4
FRAME_DURATION_MS = 200
VIDEOS_PER_BATCH = 100  # videos forecast and measured at a time, to bound the memory
LAST_FRAME = "_of_last_frame"  # suffix for the baseline that repeats the last observed frame
BYTE_RANGE = (0.0, 255.0)
FLOAT64_BYTES = 8
FLOAT32_DIGITS = 7  # decimal digits of a number in a CSV file
MAX_ROWS_PRINTED = 8  # steps of a forecast that the terminal shows
# Options of one kind of data only.
VIDEO_OPTIONS = ("n", "videos", "items", "split", "actions", "target", "horizon", "candidates")
ACTION_OPTIONS = ("actions", "target", "horizon", "candidates")
TARGET_COLOR = (255, 70, 70)
Push = Annotated[float, Interval(ge=-1, le=1)]
SERIES_OPTIONS = ("steps", "draws", "origin")


def forecast(
    run: LoadedRun,
    *,
    n: Positive | None = None,
    videos: Positive | None = 100,
    items: list[Count] | None = None,
    split: Split = "test",
    actions: list[tuple[Push, Push]] | None = None,
    target: tuple[NonNegative, NonNegative] | None = None,
    horizon: Positive = 6,
    candidates: Positive = 64,
    steps: Positive | None = None,
    draws: Annotated[int, Ge(2)] = 100,
    origin: str | int | None = None,
    seed: Count = 0,
    output_dir: str | None = None,
) -> dict[str, Any]:
    """Predict the future of a series, or n frames of each video from its first frames.

    Args:
        n: frames of a video; None is the number that the model predicts at once.
        videos: videos, drawn by the seed; None is all of the split.
        actions: the pushes after the given frames, down and to the right, of videos with actions;
            the last one is repeated. None takes those of the videos.
        target: row and column in pixels; actions are planned that bring the digit there, and
            compared with random ones.
        horizon: frames that the planner predicts ahead.
        candidates: sequences of actions that the planner draws for each frame.
        steps: steps of a series; None is the number that the model predicts at once.
        draws: futures of a series that are drawn.
        origin: the last date that the forecast of a series knows; None is the end of the series.

    Raises:
        UserError: the model does not forecast, or an option is for another kind of data.
    """
    request = CommandRequest.from_command_call(forecast, [run], locals())
    require_command_support(run, "forecast")
    if "forecast" in abilities(run.model):
        refuse_options_of_other_data(request, VIDEO_OPTIONS, "videos", "steps=30 draws=100")
        return forecast_series(
            run,
            request,
            num_steps=steps or run.spec.shape[0],
            draws=draws,
            origin=None if origin is None else str(origin),
            seed=seed,
            output_dir=output_dir,
        )
    refuse_options_of_other_data(request, SERIES_OPTIONS, "series", "n=20 videos=100")
    n, selection = n or run.spec.shape[0], ItemSelection(videos, items, split, seed)
    if run.spec.source is not None and run.spec.source.action_channels:
        without_effect = ("horizon", "candidates") if target is None else ("actions",)
        refuse_options_of_other_data(
            request,
            without_effect,
            "plans with target=[row,column]" if target is None else "forecasts without target=",
            "actions=[[0,1]] or target=[8,8] horizon=6 candidates=64",
        )
        if target is None:
            results = forecast_under_actions(run, n, selection, actions)
        else:
            results = steer_to_target(run, n, selection, Planner(target, horizon, candidates))
        return write_results(run, request, results, output_dir)
    refuse_options_of_other_data(
        request, ACTION_OPTIONS, "videos with actions (dataset.push=0.1)", "n=20 videos=100"
    )
    return forecast_videos(run, request, n=n, selection=selection, output_dir=output_dir)


def refuse_options_of_other_data(
    request: CommandRequest, options: tuple[str, ...], kind: str, instead: str
) -> None:
    """Refuse changed options without a meaning for the data of a run.

    Raises:
        UserError: names the first of them, and the options of this kind of data.
    """
    for name in options:
        if name in request.changed:
            raise UserError(
                f"{name}={request.options[name]} has no effect: it is for {kind}; this run takes "
                f"{instead}"
            )


# --- series ---------------------------------------------------------------------------------------


def forecast_series(
    run: LoadedRun,
    request: CommandRequest,
    *,
    num_steps: int,
    draws: int,
    origin: str | None,
    seed: int,
    output_dir: str | None,
) -> dict[str, Any]:
    """Draw the future of a series after an origin; write a fan chart and quantiles as CSV.

    Where the future is known, the record has the CRPS of the draws, and how many of the values the
    interval of 90% contains.

    Raises:
        UserError: the series does not have the origin, or lacks steps before it.
    """
    dataset = run.dataset
    size = FLOAT64_BYTES * draws * num_steps * dataset.num_columns
    if size > half_memory_bytes():
        raise UserError(
            f"steps={num_steps:,} draws={draws:,} take {size / 2**30:,.0f} GB, more than half of "
            "this machine's memory; give fewer"
        )
    start = find_origin(dataset, origin)
    torch.manual_seed(seed)
    drawn = dataset.to_own_units(
        draw_futures(run.model, dataset, start, num_steps, draws, run.device.torch)
    )  # (draws, steps, C)
    truth = true_future(dataset, start, num_steps)
    quantiles = quantiles_of_draws(drawn)  # (5, steps, C)
    steps = start.step + 1 + np.arange(num_steps)
    dates = dataset.grid.format_dates(dataset.grid.dates_at(steps))
    names = [column.name for column in dataset.columns]
    record: dict[str, Any] = {
        "origin": start.date,
        "first": dates[0],
        "last": dates[-1],
        "steps": num_steps,
        "draws": draws,
        "quantile_levels": list(LEVELS),
        "columns": names,
    }
    if truth is not None:
        record |= score_forecast(drawn, torch.from_numpy(truth), names)
    header, rows = forecast_table(names, dates, drawn.mean(0).numpy(), quantiles, truth)
    print_forecast(run, start, header, rows)
    fans = make_fans(dataset, start, drawn)
    return write_results(
        run,
        request,
        Results(
            f"forecast{num_steps}",
            seed,
            record,
            images={"": plot_fans(fans, PERCENTS)},
            files={".csv": partial(write_csv, header, rows)},
            arrays={"draws": drawn, "x": truth, "quantiles": quantiles},
        ),
        output_dir,
    )


def score_forecast(draws: Tensor, truth: Tensor, names: list[str]) -> dict[str, Any]:
    """Return the CRPS of each column in own units, and the share inside the interval of 90%."""
    crps = fair_crps(draws, truth).mean(0)  # (C,)
    low, *_, high = torch.from_numpy(quantiles_of_draws(draws))
    inside = ((low <= truth) & (truth <= high)).double().mean(0)
    return {
        "crps": dict(zip(names, crps.tolist(), strict=True)),
        f"coverage_{PERCENTS[0]}": dict(zip(names, inside.tolist(), strict=True)),
    }


def forecast_table(
    names: list[str],
    dates: list[str],
    mean: np.ndarray,
    quantiles: np.ndarray,
    truth: np.ndarray | None,
) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns of a forecast's table, and its rows, one for each step.

    Args:
        mean: (steps, C); `quantiles`: (5, steps, C); `truth`: (steps, C) or None.
    """
    header, columns = ["date"], [dates]
    for c, name in enumerate(names):
        prefix = f"{name}_" if len(names) > 1 else ""
        parts = {"mean": mean[:, c]}
        parts |= {f"q{level:g}": part[:, c] for level, part in zip(LEVELS, quantiles, strict=True)}
        if truth is not None:
            parts["truth"] = truth[:, c]
        header += [prefix + part for part in parts]
        columns += [
            [f"{value:.{FLOAT32_DIGITS}g}" for value in part.tolist()] for part in parts.values()
        ]
    return header, [list(row) for row in zip(*columns, strict=True)]


def print_forecast(
    run: LoadedRun, origin: Origin, header: list[str], rows: list[list[str]]
) -> None:
    """Print the first and the last steps of a forecast, with the values of its first column."""
    print(f"{run.name} on {run.dataset_name}: {len(rows):,} steps after {origin.date}")
    columns = [0, *(i for i, name in enumerate(header) if i and i <= 1 + len(LEVELS))]
    shown = rows
    if len(rows) > MAX_ROWS_PRINTED:
        half = MAX_ROWS_PRINTED // 2
        shown = [*rows[:half], ["…"] * len(header), *rows[-half:]]
    print_table(
        [header[i] for i in columns],
        [
            [row[i] if i == 0 or row[i] == "…" else f"{float(row[i]):.4g}" for i in columns]
            for row in shown
        ],
    )


def write_csv(header: list[str], rows: list[list[str]], path: Path) -> None:
    """Write a table as a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(to_csv_cell, header))
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode("utf-8", "replace"))


# --- videos ---------------------------------------------------------------------------------------


def forecast_videos(
    run: LoadedRun,
    request: CommandRequest,
    *,
    n: int,
    selection: ItemSelection,
    output_dir: str | None,
) -> dict[str, Any]:
    """Predict n frames of each video from its first frames, and measure them.

    The squared error of each frame is summed over its pixels in [0, 1]. The baseline repeats the
    last observed frame. The frames are written as bytes.

    Raises:
        UserError: no video of the split is long enough.
    """
    split, seed = selection.split, selection.seed
    require_long_enough_videos(run, n, split)
    longer = replace(run, open_data=lambda: run.dataset.with_target_frames(n))
    index = items_and_codes.selected_item_indices(longer, selection)
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


# --- videos with actions --------------------------------------------------------------------------


def forecast_under_actions(
    run: LoadedRun, n: int, selection: ItemSelection, actions: list[tuple[float, float]] | None
) -> Results:
    """Predict n frames after actions, and compare them with what these actions cause."""
    dataset, index, items = load_raw_videos(run, n, selection)
    context = dataset.context_frames
    taken = dataset.pushes_of_items(items).clone()
    if actions is not None:
        given = torch.tensor(actions[:n] + actions[-1:] * (n - len(actions)))
        taken[:, context:] = given
    truth = simulate(dataset, items, taken)
    past, device = truth[:, :context].to(run.device.torch), run.device.torch
    output = predict_frames_under_actions(run, past, taken[:, 1:].to(device), n).cpu()
    predictions = {"": output, LAST_FRAME: truth[:, context - 1 : context].expand_as(output)}
    record: dict[str, Any] = {
        "split": selection.split,
        "videos": len(items),
        "context": context,
        "n": n,
        "actions": actions,
    }
    for name, frames in predictions.items():
        error = squared_error_per_frame(frames, truth[:, context:], run.spec)
        record[f"squared_error_per_frame{name}"] = mean_and_error_dict(error.mean(1))
        record[f"squared_error_by_frame{name}"] = error.mean(0).tolist()
    rows = {"truth": truth, "forecast": torch.cat([truth[:, :context], output], 1)}
    return make_video_results(
        run, rows, None, index, record, name=f"forecast{n}_actions", seed=selection.seed
    )


def steer_to_target(run: LoadedRun, n: int, selection: ItemSelection, planner: Planner) -> Results:
    """Bring the digits to a target by planned actions, and measure the distance that is left.

    Raises:
        UserError: the target is not in the frames.
    """
    height, width = run.spec.shape[-2:]
    if planner.target[0] > height - 1 or planner.target[1] > width - 1:
        raise UserError(
            f"target={list(planner.target)} is not in the frames: the rows are 0 to {height - 1}, "
            f"the columns 0 to {width - 1}"
        )
    dataset, index, items = load_raw_videos(run, n, selection)
    seed, context = selection.seed, dataset.context_frames
    record: dict[str, Any] = {
        "split": selection.split,
        "videos": len(items),
        "context": context,
        "n": n,
        "target": list(planner.target),
        "horizon": planner.horizon,
        "candidates": planner.candidates,
    }
    rows, curves = {}, {}
    for name, own in (("planned", planner), ("random", None)):
        rows[name], _ = act_in_simulation(run, dataset, items, n, own, seed)
        distance = distances_to_target(rows[name], planner.target, run.spec)[:, context - 1 :]
        record[f"distance_to_target_{name}"] = mean_and_error_dict(distance[:, -1])
        curves[name] = distance.numpy()
        record[f"distance_by_frame_{name}"] = distance.mean(0).tolist()
    results = make_video_results(
        run, rows, planner.target, index, record, name=f"steer{n}", seed=seed
    )
    results.images["distance"] = plot_distances(curves)
    return results


def load_raw_videos(
    run: LoadedRun, n: int, selection: ItemSelection
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Return the dataset with n target frames, the indices of the videos, and its raw items."""
    dataset = run.dataset.with_target_frames(n)
    longer = replace(run, open_data=lambda: dataset)
    index = items_and_codes.selected_item_indices(longer, selection)
    items, _ = dataset.raw_items_and_labels(selection.split)
    return dataset, index, items[index]


def make_video_results(
    run: LoadedRun,
    rows: dict[str, Tensor],
    target: tuple[float, float] | None,
    index: Tensor,
    record: dict[str, Any],
    *,
    name: str,
    seed: int,
) -> Results:
    """Return results with named rows of videos (N, T, C, H, W) as strips and as a GIF.

    Args:
        target: row and column of a pixel that is marked in every frame, or None.
    """
    bytes_of = {key: run.spec.to_bytes(video) for key, video in rows.items()}
    shown = {key: mark_target(video, target) for key, video in bytes_of.items()}
    spec = replace(run.spec, range=BYTE_RANGE, dequantized=False)
    sets = [(video[:MAX_PICTURE_VIDEOS], spec) for video in shown.values()]
    films = [video[:MAX_GIF_VIDEOS] for video in shown.values()]
    return Results(
        name,
        seed,
        record,
        images={"": item_pictures.make_comparison_picture(sets, list(shown))},
        files={".gif": partial(write_video_gif, films, spec)},
        arrays={"index": index, **bytes_of},
    )


def mark_target(video: Tensor, target: tuple[float, float] | None) -> Tensor:
    """Return videos of bytes (N, T, C, H, W) with a pixel in color, unless it is None."""
    if target is None:
        return video
    colored = video.expand(-1, -1, 3, -1, -1).clone()
    colored[..., round(target[0]), round(target[1])] = torch.tensor(TARGET_COLOR).to(video)
    return colored


def plot_distances(curves: dict[str, np.ndarray]) -> Picture:
    """Return the distances (N, T) to a target over the frames: means, and quartiles as bands."""
    canvas, (axes,) = make_canvas_and_axes(7, 4)
    for name, distances in curves.items():
        frames = np.arange(distances.shape[1])
        low, high = np.quantile(distances, [0.25, 0.75], axis=0)
        (line,) = axes.plot(frames, distances.mean(0), label=f"{name} actions", linewidth=2)
        axes.fill_between(frames, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("frames after the given ones")
    axes.set_ylabel("distance to the target [pixels]")
    axes.set_ylim(bottom=0)
    axes.legend()
    return canvas_to_picture(canvas, "means over the videos, and the middle half of them")
