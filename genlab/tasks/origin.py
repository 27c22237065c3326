"""Where a run comes from: what its run.json says."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from genlab import __version__


def origin(own: dict[str, Any], dataset: Any, device: Any, choices: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return what run.json says of a new run: what it is, and by which command, versions and commit it came to be."""
    return {
        "model": choices["model"],
        "dataset": choices["dataset"],
        "choices": {k: v for k, v in choices.items() if not k.startswith("hydra")},
        "command": ["genlab", "train", *overrides],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "spec": dataset.spec.to_json(),
        "device": str(device),
        "versions": {"genlab": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit(),
        "seed": own["seed"],
    }


def commit() -> str | None:
    """Return the commit of genlab's own checkout, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    said = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return said.stdout.strip() or None
