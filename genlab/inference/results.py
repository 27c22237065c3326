"""The numbers of a task as a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from genlab.fileio import whole, write_whole


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, and print its path; a number that is not finite, which JSON has no word for, becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(finite(record), indent=2).encode())
    print(path)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as a compressed .npz, whole or not at all."""
    with whole(path) as f:
        np.savez_compressed(f, **arrays)


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
