"""Going back: make a run folder that of a training at an earlier step, and lose nothing."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from genlab.errors import UserError
from genlab.fileio import atomic_write
from genlab.runs.run_folder import RunFolder


def rewind_run_folder(run: RunFolder, step: int, best: dict[str, float] | None) -> list[str]:
    """Make a run folder that of a training at `step`, which a start or a resume continues.

    A training that was killed may have written pictures and log lines after its last checkpoint;
    it writes them again. If the run has later checkpoints, it goes back: then they, the pictures
    and the log are kept as `.aside` files.

    Args:
        best: `Trainer.best` at that step.

    Returns:
        One message for each kind of files that is kept aside.
    """
    later = [path for path in run.checkpoint_files() if checkpoint_step(path) > step]
    pictures = [path for path in run.preview_files() if checkpoint_step(path) > step]
    messages = []
    if later:
        for path in (*later, *pictures):
            set_aside(path)
        if run.stats.exists():
            log = unused_aside_path(run.stats)
            shutil.copyfile(run.stats, log)
        messages.append(
            f"the run goes back to step {step:,}: its later checkpoints, pictures and log are kept "
            "as .aside files"
        )
    else:
        for path in pictures:
            path.unlink()
    run.discard_records_after(step)
    return messages + rewind_best_checkpoint(run, best)


def rewind_best_checkpoint(run: RunFolder, best: dict[str, float] | None) -> list[str]:
    """Keep best.pt aside if it is not that of the best evaluation so far; return a message."""
    path, messages = run.best_checkpoint, []
    if path.exists():
        try:
            stored = run.load_checkpoint(path)["step"]
        except UserError:
            stored = None
        if best is not None and stored == best["step"]:
            return []
        what = "is damaged" if stored is None else f"is of step {stored:,}"
        messages = [f"{path} {what}: it is kept as {set_aside(path).name}"]
    if best is None:
        return messages
    of_best = run.checkpoint_path(int(best["step"]))
    if of_best.exists():
        atomic_write(path, of_best.read_bytes())
    elif messages:
        messages[0] += (
            f"; the best evaluation before was at step {int(best['step']):,}, of which there is no "
            "checkpoint any more, and a better one is saved again"
        )
    return messages


def checkpoint_step(path: Path) -> int:
    """Return the step in the name of a checkpoint or of a preview."""
    found = re.search(r"\d+", path.name)
    assert found
    return int(found[0])


def set_aside(path: Path) -> Path:
    """Rename a file so that it is kept but not used; return its path."""
    aside = unused_aside_path(path)
    os.replace(path, aside)
    return aside


def unused_aside_path(path: Path) -> Path:
    """Return path.aside, path.aside2, …: the first that does not exist."""
    number = 1
    while (found := path.with_name(f"{path.name}.aside{number if number > 1 else ''}")).exists():
        number += 1
    return found
