"""A disk cache, keyed by content, of what is expensive and shared by runs.

It has trained classifiers and features of real items.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from genlab.fileio import find_os_error_in_causes
from genlab.system import user_cache_folder
from genlab.untrusted.files import open_regular_file


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
    path = user_cache_folder() / kind / f"{key}.pt"
    if path.exists():
        try:
            with open_regular_file(path) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated file can raise anything, and can be replaced
            print(
                f"{path} is unreadable ({type(error).__name__}) and is computed again",
                file=sys.stderr,
            )
    result = compute()
    # several jobs of a sweep may compute it at once
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(result, part)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # a full disk; what was computed can be used
        reason = find_os_error_in_causes(error)
        print(f"{path} is not kept for the next time: {reason or error}", file=sys.stderr)
        with suppress(OSError):
            part.unlink()
    return result
