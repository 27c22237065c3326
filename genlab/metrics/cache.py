"""A disk cache, keyed by content, of what is expensive and shared by runs.

It has trained classifiers and features of real items.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def cache_folder() -> Path:
    """Return the folder of the cache: GENLAB_CACHE, or genlab in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GENLAB_CACHE") or Path(user_cache) / "genlab")


def content_hash(*parts: Tensor | str) -> str:
    """Return a hash of tensors (their values, type and shape) and strings."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
        else:
            digest.update(f"{part.dtype} {tuple(part.shape)}\0".encode())
            digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


def load_cached_or_compute(
    kind: str, key: str, compute: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the result of `compute` (tensors and plain values), computed once per key.

    A damaged file is computed again.
    """
    path = cache_folder() / kind / f"{key}.pt"
    if path.exists():
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file can raise anything, and can be replaced
            print(
                f"{path} is unreadable ({type(error).__name__}) and is computed again",
                file=sys.stderr,
            )
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # several jobs of a sweep may compute it at once
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(result, part)
    os.replace(part, path)
    return result
