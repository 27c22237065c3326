"""By what a run that goes on knows whether its data are still those that it began with."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from genlab.data.dataset import SPLITS, Dataset

FEW = 16  # files, up to which their content counts, and not their names and sizes alone


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return how many items each split has, and of data from files a hash of their names and sizes, of few also of their content.

    It stays the same when the folder moves.
    """
    files = sources(dataset)
    whole = hashlib.sha256()
    around = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    for file in sorted(files):
        whole.update(
            f"{file.relative_to(around)} {file.stat().st_size}\0".encode("utf-8", "surrogateescape")
        )
        if len(files) <= FEW:
            with open(file, "rb") as f:
                whole.update(hashlib.file_digest(f, "sha256").digest())
    sizes = {name: dataset.size(name) for name in SPLITS}
    return {**sizes, "files": len(files), "digest": whole.hexdigest()[:32] if files else ""}


def whereabouts(dataset: Any) -> str:
    """Return a set's name, and of data from files where they lie."""
    files = sources(dataset)
    return (
        f"{dataset.name} in {files[0] if len(files) == 1 else files[0].parent}"
        if files
        else dataset.name
    )


def sources(dataset: Any) -> list[Path]:
    """Return the files that a set was read from, or the one that it is made of."""
    return list(getattr(dataset, "sources", ())) or (
        sources(dataset.of) if hasattr(dataset, "of") else []
    )
