"""Samples of a run at successive steps of its training, from the same noise.

They come from the previews that the training drew, or are drawn again from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genlab.console import track
from genlab.errors import UserError
from genlab.runs.loaded_run import LoadedRun
from genlab.runs.rewind import checkpoint_step
from genlab.untrusted.files import read_bytes, read_text
from genlab.untrusted.states import check_weights
from genlab.viz import item_pictures
from genlab.viz.sheets import TEXT_COLUMNS, read_picture_from_sheet_png, read_values_from_sheet_png

Source = Literal["previews", "checkpoints"]
SCATTERED_KINDS = ("points", "table")


@dataclass(frozen=True)
class TrainingSamples:
    """Samples of the same noise at steps of a training.

    Attributes:
        samples: step -> points (n, D), images (n, H, W, 3) of bytes, or a text.
        strip_steps: the steps of a strip.
    """

    source: Source
    samples: dict[int, Any]
    strip_steps: list[int]

    @property
    def is_array(self) -> bool:
        """Whether the samples are arrays and not texts."""
        return not isinstance(self.samples[self.strip_steps[0]], str)

    @property
    def description(self) -> str:
        """A line that says where the samples are from."""
        listed = ", ".join(f"{step:,}" for step in self.strip_steps)
        return f"samples of the same noise at the steps {listed}, from the run's {self.source}"

    @property
    def note(self) -> str:
        """A sentence for the caption."""
        return f"samples of the same noise at successive steps, from the run's {self.source}"

    def names(self, steps: Sequence[int] | None = None) -> list[str]:
        """Return the names of steps, by default of all."""
        return [format_step(step) for step in steps or self.samples]


def format_step(step: int) -> str:
    """Return a number of steps, thousands as k."""
    return f"{step // 1000:,}k steps" if step and step % 1000 == 0 else f"{step:,} steps"


def load_training_samples(
    run: LoadedRun,
    *,
    n: int,
    seed: int,
    steps: Sequence[float] = (),
    num_steps: int = 4,
    num_frames: int = 0,
) -> TrainingSamples:
    """Return n samples of the same noise at some steps of a run, up to that of its checkpoint.

    Args:
        seed: of the noise; the previews have seed 0.
        steps: of the strip; none chooses `num_steps` of them, ever farther apart.
        num_frames: further steps, spaced evenly, for an animation.

    Raises:
        UserError: the run has neither previews nor checkpoints of the steps.
    """
    checkpoints = {
        step: path
        for path in run.folder.checkpoint_files()
        if (step := checkpoint_step(path)) <= run.step
    }
    previews = find_previews(run, n, seed)
    wanted = [round(step) for step in steps]
    source, files = choose_source(previews, checkpoints, wanted, run)
    strip = wanted or choose_steps_far_apart(sorted(files), num_steps)
    known = sorted(files)
    spaced = [
        known[round(i * (len(known) - 1) / max(1, num_frames - 1))] for i in range(num_frames)
    ]
    needed = sorted({*strip, *spaced})
    if source == "previews":
        samples = {step: read_preview(run, files[step], n) for step in needed}
    else:
        samples = draw_from_checkpoints(run, {step: files[step] for step in needed}, n, seed)
    return TrainingSamples(source, samples, strip)


def choose_source(
    previews: dict[int, Path], checkpoints: dict[int, Path], steps: Sequence[int], run: LoadedRun
) -> tuple[Source, dict[int, Path]]:
    """Return the source that has the steps; without steps the one that has more of them.

    Raises:
        UserError: none has all of them, or both have less than two.
    """
    sources: dict[Source, dict[int, Path]] = {"checkpoints": checkpoints, "previews": previews}
    if steps:
        for source, files in sources.items():
            if set(steps) <= set(files):
                return source, files
        found = "; ".join(
            f"{source} of {', '.join(f'{step:,}' for step in sorted(files)) or 'no step'}"
            for source, files in sources.items()
        )
        raise UserError(
            f"times={list(steps)}: {run.folder.path} does not have all of these steps; it has "
            f"{found}"
        )
    source = max(sources, key=lambda name: len(sources[name]))
    if len(sources[source]) < 2:
        raise UserError(
            f"{run.folder.path} has samples of less than two steps of its training; train with "
            "trainer.preview_every=500, or keep more checkpoints with trainer.keep_checkpoints=20"
        )
    return source, sources[source]


def choose_steps_far_apart(steps: Sequence[int], n: int) -> list[int]:
    """Return n of the steps (ascending) with about the same factor between them."""
    first, last = max(1, steps[0]), steps[-1]
    wanted = [first * (last / first) ** (i / max(1, n - 1)) for i in range(n)]
    nearest = {min(steps, key=lambda step: abs(np.log(max(1, step) / goal))) for goal in wanted}
    return sorted(nearest)


# --- previews -------------------------------------------------------------------------------------


def find_previews(run: LoadedRun, n: int, seed: int) -> dict[int, Path]:
    """Return the previews by step from which n samples of a seed can be read."""
    suffix = ".txt" if run.spec.kind == "tokens" else ".png"
    found = {
        step: path
        for path in run.folder.preview_files()
        if path.suffix == suffix and (step := checkpoint_step(path)) <= run.step
    }
    if seed or not found:
        return {}
    try:
        return found if read_preview(run, next(iter(found.values())), n) is not None else {}
    except UserError:
        return {}


def read_preview(run: LoadedRun, path: Path, n: int) -> Any:
    """Return the first n samples of a preview: see `TrainingSamples`.

    Raises:
        UserError: the file does not have them, as a plot of points of an older version.
    """
    if run.spec.kind == "tokens":
        texts = read_text(path).removesuffix("\n").split(f"\n{'-' * TEXT_COLUMNS}\n")
        return item_pictures.join_texts_by_dashes(texts[:n])
    png = read_bytes(path)
    if run.spec.kind in SCATTERED_KINDS:
        values = read_values_from_sheet_png(png)
        if values is not None and len(values) >= n:
            return torch.from_numpy(values[:n])
    else:
        picture = read_picture_from_sheet_png(png)
        if picture is not None and not picture.is_plot and len(picture.images) >= n:
            return picture.images[:n]
    raise UserError(f"{path} does not have {n} samples that can be read")


# --- checkpoints ----------------------------------------------------------------------------------


@torch.no_grad()
def draw_from_checkpoints(
    run: LoadedRun, files: dict[int, Path], n: int, seed: int
) -> dict[int, Any]:
    """Return n samples of each checkpoint, drawn with the same seed: see `TrainingSamples`."""
    own = {key: value.clone() for key, value in run.model.state_dict().items()}
    samples: dict[int, Any] = {}
    for step, path in track(files.items(), "drawing samples", unit="checkpoints"):
        state = run.folder.load_checkpoint(path)
        kind = "ema" if state["ema"] else "model"
        check_weights(state[kind], own, kind)
        run.model.load_state_dict(state[kind])
        torch.manual_seed(seed)
        samples[step] = to_shown_samples(run, run.model.sample(n).cpu())
    run.model.load_state_dict(own)
    return samples


def to_shown_samples(run: LoadedRun, x: Tensor) -> Any:
    """Return samples x (n, *shape) as `TrainingSamples` has them."""
    if run.spec.kind in SCATTERED_KINDS:
        return x.flatten(1)
    if run.spec.kind == "tokens":
        return item_pictures.join_texts_by_dashes(item_pictures.decode_tokens_to_texts(x, run.spec))
    images = item_pictures.to_uint8_images(x, run.spec)
    return np.broadcast_to(images, (*images.shape[:3], 3))
