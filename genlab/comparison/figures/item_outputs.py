"""Outputs: the same held-out items, with each run's output and error beside the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.abilities import abilities
from genlab.comparison.figures.registry import FigureRun, make_table_lines
from genlab.errors import UserError
from genlab.metrics.base import mean_and_error
from genlab.metrics.paired_translation import (
    make_baseline_translations,
    similarities_per_item,
    translate_in_batches,
)
from genlab.metrics.reconstruction import move_to_bin_centers
from genlab.runs.loaded_run import LoadedRun
from genlab.spec import Batch, Count, DataSpec, Positive
from genlab.tables import format_with_error
from genlab.viz import item_pictures
from genlab.viz.picture import Picture, make_grid
from genlab.viz.slides import Cell, Slide, TableLine, render_slide

CELL_SIZE = (264, 264)
SMALL_CELL_SIZE = (168, 168)  # if the items are across
VIDEO_CELL_WIDTH = 640
TABLE_NAMES = {
    "psnr": "PSNR [dB] ↑",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "squared_error": "squared error of a frame [pixels²] ↓",
}
HIGHER_IS_BETTER = ("psnr", "ssim")


def draw_outputs(
    runs: list[FigureRun],
    *,
    items: Positive = 4,
    items_across: bool = False,
    baselines: tuple[str, ...] = (),
    n: Positive = 200,
    numbers: tuple[str, ...] = (),
    seed: Count = 0,
) -> Picture:
    """Return held-out items, one a row, with the output of each run in its own column.

    An output is the translation of the item's source, or the reconstruction of the item. Its errors
    are below it. The table has their means over n items with standard errors.

    Args:
        items: held-out items that are shown.
        items_across: show one item a column, and the outputs of each run in its own row. Videos are
            always shown so.
        baselines: of translations without a model: source | bicubic | last_frame |
            training_mean; "source" only shows it.
        n: held-out items that are measured.
        numbers: further rows of the comparison's table.
        seed: of the items, and of a model that draws noise.
    """
    first = runs[0].run
    n = max(n, items)
    batch = first.dataset.head("test", n, seed=seed)
    truth = move_to_bin_centers(batch.x, first.spec)
    columns = make_baseline_outputs(first, batch, baselines)
    for run in runs:
        torch.manual_seed(seed)
        columns[run.label] = compute_outputs(run.run, batch)
    measures = {name: similarities_per_item(x, truth, first.spec) for name, x in columns.items()}
    is_video = first.spec.kind == "video"
    shown = {name: make_cells(x[:items], first.spec) for name, x in columns.items()}
    if "source" in baselines and batch.cond is not None and first.spec.source is not None:
        source = make_cells(batch.cond[:items], first.spec.source)
        shown = {"source": source, **shown}
    shown["truth"] = make_cells(truth[:items], first.spec)
    captions = {
        name: [format_item_errors(measures[name], i, is_video=is_video) for i in range(items)]
        for name in columns
    }
    grid: list[list[Cell | None]] = [
        [
            Cell(cell.pixels, captions[name][i]) if name in captions else cell
            for name, cell in ((name, cells[i]) for name, cells in shown.items())
        ]
        for i in range(items)
    ]
    names = [name.replace("_", " ") for name in shown]
    note = f"means over {n} held-out items, ± standard error"
    if items_across or is_video:
        if numbers:
            raise UserError("figures: numbers= are for outputs that are not items_across")
        return render_items_across(grid, names, measures, note, is_video=is_video)
    before = [name for name in shown if name not in {run.label for run in runs} | {"truth"}]
    table = make_error_lines(measures, list(shown))
    table += make_table_lines(runs, numbers, before=[""] * len(before))
    return render_slide(Slide(grid, names, (), table, note=note, cell_size=CELL_SIZE))


def make_baseline_outputs(
    run: LoadedRun, batch: Batch, names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return the outputs (N, *shape) of baselines without a model.

    Raises:
        UserError: a baseline does not apply to the data.
    """
    wanted = [name for name in names if name != "source"]
    if not wanted:
        return {}
    if batch.cond is None:
        raise UserError(f"figures: baselines={list(names)} are for data with sources")
    mean_target = run.dataset.head("train", 500, seed=0).x.mean(0)
    known = make_baseline_translations(batch, run.spec, mean_target)
    for name in wanted:
        if name not in known:
            raise UserError(f"figures: there is no baseline {name}; there are {', '.join(known)}")
    return {name: known[name] for name in wanted}


@torch.no_grad()
def compute_outputs(run: LoadedRun, batch: Batch) -> Tensor:
    """Return the translations of a batch's sources, or reconstructions of its items, (N, …).

    Raises:
        UserError: the model does neither.
    """
    model = run.model
    available = abilities(model)
    like = next(model.parameters())
    if "translate" in available and batch.cond is not None:
        return translate_in_batches(model.translate, batch.cond.to(like), run.spec).cpu()
    if {"encode", "decode"} <= available:
        x = move_to_bin_centers(batch.x, run.spec).to(like)
        decoded: Tensor = model.decode(model.encode(x)).float().cpu()
        return decoded
    raise UserError(f"figures: {run.name} neither translates nor reconstructs items")


def make_cells(x: Tensor, spec: DataSpec) -> list[Cell]:
    """Return images, or videos as strips of their frames."""
    if spec.kind == "video":
        cells = []
        for video in x:
            frames = item_pictures.to_uint8_images(video, frame_spec(spec))
            cells.append(Cell(make_grid(frames, columns=len(frames), gap=1)))
        return cells
    return [Cell(image) for image in item_pictures.to_uint8_images(x, spec)]


def frame_spec(spec: DataSpec) -> DataSpec:
    """Return the DataSpec of a video's frames."""
    from dataclasses import replace

    return replace(spec, kind="image", shape=spec.shape[1:], source=None, task="")


def format_item_errors(measures: dict[str, Tensor], i: int, *, is_video: bool) -> str:
    """Return the errors of an item as its caption: 24.1 dB / 0.873."""
    names = ["squared_error"] if is_video else [m for m in ("psnr", "ssim") if m in measures]
    texts = {
        "psnr": lambda v: f"{v:.1f} dB",
        "ssim": lambda v: f"SSIM {v:.2f}",
        "squared_error": lambda v: f"squared error {v:.2f}",
    }
    return ", ".join(texts[name](measures[name][i].item()) for name in names)


def make_error_lines(measures: dict[str, dict[str, Tensor]], columns: list[str]) -> list[TableLine]:
    """Return a line for each measure: its mean over the items with standard error."""
    lines = []
    for measure in next(iter(measures.values())):
        means: dict[str, float] = {}
        texts = []
        for name in columns:
            if name not in measures:
                texts.append("")
                continue
            means[name], error = mean_and_error(measures[name][measure])
            texts.append(format_with_error(means[name], error))
        best = (max if measure in HIGHER_IS_BETTER else min)(means, key=lambda name: means[name])
        lines.append(TableLine(TABLE_NAMES[measure], texts, frozenset({columns.index(best)})))
    return lines


def render_items_across(
    grid: list[list[Cell | None]],
    names: list[str],
    measures: dict[str, dict[str, Tensor]],
    note: str,
    *,
    is_video: bool,
) -> Picture:
    """Return a column for each item and a row for each output, with its mean error beside it."""
    measure = "squared_error" if is_video else "psnr"
    unit = "" if is_video else " dB"
    means = {}
    for name, found in measures.items():
        value, error = mean_and_error(found[measure])
        means[name.replace("_", " ")] = f"{format_with_error(value, error)}{unit}"
    rows = [[row[k] for row in grid] for k in range(len(names))]
    row_names = [f"{name}: {means[name]}" if name in means else name for name in names]
    if not is_video:
        return render_slide(Slide(rows, (), row_names, note=note, cell_size=SMALL_CELL_SIZE))
    row_names = [name.replace("source", "given frames") for name in row_names]
    sizes = [cell.pixels.shape[:2] for row in rows for cell in row if cell]
    width, height = max(w for _, w in sizes), max(h for h, _ in sizes)
    scale = max(1, VIDEO_CELL_WIDTH // width)
    note = f"squared error: Σ (difference of pixels in [0, 1])² of a frame; {note}"
    cell_size = (width * scale, height * scale)
    return render_slide(Slide(rows, (), row_names, note=note, cell_size=cell_size))
