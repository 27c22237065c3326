"""genlab forecast: the next frames of held-out films, each forecast from those before it, as a GIF beside the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.fileio import naming
from genlab.inference import queries
from genlab.inference.requirements import ready
from genlab.metrics.context import to_bytes
from genlab.metrics.paired_translation import translated
from genlab.runs.loaded_run import Run
from genlab.spec import Batch, Count, Positive, Spec
from genlab.viz import image_grids

SHOWN, FILMS = 8, 4  # films in the GIF, and in the picture
MILLISECONDS = 200  # of a frame
FILMS_AT_ONCE = 100  # forecast and measured, so that memory holds any number of them
OF_THE_LAST = "_of_the_last_frame"  # of repeating it
BYTES = (0.0, 255.0)


def forecast(
    run: Run,
    *,
    n: Positive | None = None,
    films: Positive | None = 100,
    items: list[Count] | None = None,
    split: queries.Split = "test",
    seed: Count = 0,
    out: str | None = None,
) -> dict[str, Any]:
    """Forecast n frames of each film from its past, the model's own frames being the past of those after them.

    Measured, frame by frame, as the squared error summed over a frame's pixels in [0, 1]; beside it that of repeating the
    last frame seen. The frames themselves are written as bytes.

    Args:
        n: frames; None: as many as the model gives at once.
        films: drawn by the seed; None: all of the split.

    Raises:
        UserError: the model was not trained to forecast, or no film of the split is long enough.
    """
    ready(run, "forecast")
    n = n or run.spec.shape[0]
    longer = replace(run, open_data=lambda: run.dataset.reaching(n))
    index = queries.numbers(longer, split, films, seed, items)
    torch.manual_seed(seed)
    parts = [
        judged(run, queries.held(longer, split, some, seed), n)
        for some in index.split(FILMS_AT_ONCE)
    ]
    found = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    errors = {what: found.pop("squared_error" + what) for what in ("", OF_THE_LAST)}  # (N, n)
    record: dict[str, Any] = {
        "split": split,
        "films": len(index),
        "past": found["source"].shape[1],
        "n": n,
    }
    for what, error in errors.items():
        record[f"squared_error_a_frame{what}"] = queries.mean(error.mean(1))
        record[f"squared_error_of_each_frame{what}"] = error.mean(0).tolist()
    spec = replace(longer.dataset.spec, range=BYTES)
    image = image_grids.compared(
        [(found[key][:FILMS], spec) for key in ("x", "output")], ["truth", "forecast"]
    )
    written = queries.write(
        run,
        f"forecast{n}",
        seed=seed,
        out=out,
        record=record,
        images={"": image},
        arrays={"index": index, **found},
    )
    folder = Path(out) if out else run.folder.samples
    rows = [torch.cat([found["source"][:SHOWN], found[key][:SHOWN]], 1) for key in ("x", "output")]
    print(gif(rows, spec, folder / f"forecast{n}_step{run.step}_seed{seed}.gif"))
    return written


def judged(run: Run, held: Batch, n: int) -> dict[str, Tensor]:
    """Return what is forecast of films and how far it is off: frames as bytes (N, T, C, H, W), errors (N, n) frame by frame."""
    made = ahead(run, held.cond, n)
    guesses = {"": made, OF_THE_LAST: held.cond[:, -1:].expand_as(made)}
    errors = {
        f"squared_error{what}": frame_errors(guess, held.x, run.spec)
        for what, guess in guesses.items()
    }
    films = {"source": held.cond, "output": made, "x": held.x}
    return {key: to_bytes(film, run.spec.range).cpu() for key, film in films.items()} | errors


def ahead(run: Run, past: Tensor, n: int) -> Tensor:
    """Return the n frames (N, n, C, H, W) after the past ones (N, P, C, H, W); what is forecast becomes the past."""
    made: list[Tensor] = []
    while sum(frames.shape[1] for frames in made) < n:
        made.append(translated(run.model.translate, past, run.spec))
        past = torch.cat([past, made[-1].to(past)], 1)[:, -past.shape[1] :]
    return torch.cat(made, 1)[:, :n]


def frame_errors(x: Tensor, y: Tensor, spec: Spec) -> Tensor:
    """Return the squared error (N, T) summed over the pixels of each frame of films (N, T, C, H, W), pixels in [0, 1]."""
    low, high = spec.range
    unit = [((part.double() - low) / (high - low)).clamp(0, 1) for part in (x, y)]
    return (unit[0] - unit[1]).square().flatten(2).sum(2).cpu()


def gif(rows: list[Tensor], spec: Spec, path: Path) -> Path:
    """Write films, a set of them (N, T, C, H, W) a row, as an animation that repeats; return its path."""
    from PIL import Image

    pages = []
    for t in range(rows[0].shape[1]):
        still = torch.cat([row[:, t] for row in rows])  # (rows · N, C, H, W)
        sheet = image_grids.grid(
            image_grids.to_bytes(still, replace(spec, kind="image")), columns=len(rows[0])
        )
        pages.append(Image.fromarray(sheet))
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        pages[0].save(path, save_all=True, append_images=pages[1:], duration=MILLISECONDS, loop=0)
    return path
