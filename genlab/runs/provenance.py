"""Where a run comes from: what its run.json says."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from genlab import __version__
from genlab.data.fingerprint import fingerprint, whereabouts
from genlab.errors import UserError


def origin(
    own: dict[str, Any], dataset: Any, device: Any, choices: dict[str, Any], overrides: list[str]
) -> dict[str, Any]:
    """Return what run.json says of a new run: what it is, and by which command, versions and commit it came to be."""
    return {
        "model": choices["model"],
        "dataset": choices["dataset"],
        "choices": {k: v for k, v in choices.items() if not k.startswith("hydra")},
        "command": ["genlab", "train", *overrides],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "spec": dataset.spec.to_json(),
        "data": fingerprint(dataset),
        "device": str(device),
        "versions": {
            "genlab": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "seed": own["seed"],
    }


def know_again(dataset: Any, info: dict[str, Any], *, named: bool) -> str:
    """Return what is to be said of data that are not those that a run began with, "" where they are.

    Args:
        info: the run's run.json; one of an older version tells nothing of the data.
        named: whether the resume names the data anew, and so means those that are there now.

    Raises:
        UserError: they differ, and nobody said that they may.
    """
    now, before = fingerprint(dataset), info.get("data")
    if before is None or now == before:
        return ""
    sizes = [
        f"{now[k]:,} {k} items for {before[k]:,}"
        for k in ("train", "validation", "test")
        if now[k] != before.get(k)
    ]
    differ = f"{whereabouts(dataset)} is not what the run began with ({', '.join(sizes) or 'other files'})"
    if not named:
        anew = f"dataset={info['dataset']} with dataset.path= or dataset.root="
        mend = f"put it back, or name it anew to go on with what is there: {anew}"
        raise UserError(f"{differ}; {mend}")
    return f"{differ}: from here on the run is not the undisturbed one"


def commit() -> str | None:
    """Return the commit of genlab's own checkout, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    said = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or None
