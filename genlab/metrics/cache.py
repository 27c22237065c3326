"""What is costly to make and the same for everybody: trained classifiers, features of real items; on disk, by content."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def folder() -> Path:
    """Return the folder of the cache: GENLAB_CACHE, or genlab in the user's own cache folder."""
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GENLAB_CACHE") or Path(own) / "genlab")


def digest(*parts: Tensor | str) -> str:
    """Return a hash of tensors (their values, type and shape) and words."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            whole.update(part.encode() + b"\0")
        else:
            whole.update(f"{part.dtype} {tuple(part.shape)}\0".encode())
            whole.update(part.detach().cpu().contiguous().numpy().data)
    return whole.hexdigest()[:32]


def cached(kind: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `make` gives (tensors and plain values), made once for a key; a damaged file is made anew."""
    path = folder() / kind / f"{key}.pt"
    if path.exists():
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (
            Exception
        ) as error:  # whatever a file cut short makes the reader raise: it can be made again
            print(
                f"{path} is unreadable ({type(error).__name__}) and is made anew", file=sys.stderr
            )
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(
        f"{path.name}.{os.getpid()}.part"
    )  # several jobs of a sweep may make it at once
    torch.save(made, part)
    os.replace(part, path)
    return made
