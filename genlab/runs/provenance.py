"""The content of run.json: the command, versions, commit and data of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from genlab import __version__
from genlab.data.dataset import SPLITS
from genlab.data.fingerprint import data_location, dataset_fingerprint
from genlab.errors import UserError
from genlab.runs.migrations import FORMAT


def collect_provenance(
    config: dict[str, Any],
    dataset: Any,
    device: Any,
    choices: dict[str, Any],
    overrides: list[str],
) -> dict[str, Any]:
    """Return the content of a new run's run.json.

    Args:
        choices: the selected option of each config group.
        overrides: of the command line.
    """
    return {
        "format": FORMAT,
        "model": choices["model"],
        "dataset": choices["dataset"],
        "choices": {k: v for k, v in choices.items() if not k.startswith("hydra")},
        "command": ["genlab", "train", *overrides],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "start_folder": os.getcwd(),  # which relative paths in the config are relative to
        "spec": dataset.spec.to_json(),
        "data": dataset_fingerprint(dataset),
        "device": str(device),
        "versions": {
            "genlab": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": genlab_git_commit(),
        "seed": config["seed"],
    }


def data_change_warning(dataset: Any, metadata: dict[str, Any], *, named: bool) -> str:
    """Compare the data with those that a run began with; return a warning, or "" if equal.

    Args:
        metadata: the run's run.json; early versions did not record the data.
        named: whether the resume names the data's folder, and so means the data that are there now.

    Raises:
        UserError: they differ, and the resume does not name them.
    """
    difference = describe_data_change(dataset, metadata)
    if difference and not named:
        raise UserError(
            f"{difference}; restore it, or name it again to continue with the present data: "
            "dataset.path= or dataset.root="
        )
    return difference and f"{difference}: from here on the run differs from an uninterrupted one"


def describe_data_change(dataset: Any, metadata: dict[str, Any]) -> str:
    """Return how the data differ from those that a run began with, "" if they do not."""
    now, before = dataset_fingerprint(dataset), metadata.get("data")
    if before is None or now == before:
        return ""
    sizes = [
        f"{now[split]:,} {split} items instead of {before[split]:,}"
        for split in SPLITS
        if now[split] != before.get(split)
    ]
    return (
        f"{data_location(dataset)} is not what the run began with "
        f"({', '.join(sizes) or 'other files'})"
    )


def genlab_git_commit() -> str | None:
    """Return the commit of genlab's own checkout, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, check=False)
    return result.stdout.decode(errors="replace").strip() or None
