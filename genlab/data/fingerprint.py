"""Dataset fingerprints: detect on resume that the data changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from genlab.console import track
from genlab.data.dataset import SPLITS, Dataset
from genlab.untrusted.files import open_regular_file

MAX_HASHED_FILES = 16  # up to this number of files their content is hashed, not only name and size


def dataset_fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return the size of each split and a hash of the source files, if there are any.

    The hash covers the files' names and sizes; for few files it covers their content too. It does
    not change when the folder moves.
    """
    files = dataset.source_files
    digest = hashlib.sha256()
    parent = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    for file in track(sorted(files), "hashing file names", unit="files"):
        line = f"{file.relative_to(parent)} {file.stat().st_size}\0"
        digest.update(line.encode("utf-8", "surrogateescape"))
        if len(files) <= MAX_HASHED_FILES:
            with open_regular_file(file) as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
    sizes = {name: dataset.size(name) for name in SPLITS}
    return {**sizes, "files": len(files), "digest": digest.hexdigest()[:32] if files else ""}


def data_location(dataset: Dataset) -> str:
    """Return the dataset's name and, if it was read from files, their path."""
    files = dataset.source_files
    if not files:
        return dataset.name
    return f"{dataset.name} in {files[0] if len(files) == 1 else files[0].parent}"
