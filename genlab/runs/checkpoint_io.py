"""Checkpoint files: the state of a trainer as torch.save writes it, checked against its own checksums when it is read."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

from genlab.errors import UserError
from genlab.fileio import whole

SETS: dict[str, tuple[type, ...]] = {  # what every state has, in which types
    "step": (int,),
    "pulled": (int,),
    "seed": (int,),
    "seconds": (float, int),
    "best": (dict, type(None)),
    "pending": (list,),
    "model": (dict,),
    "ema": (dict, type(None)),
    "optimizers": (dict,),
    "scaler": (dict,),
}


class Damaged(UserError):
    """A checkpoint whose bytes are not those that were written."""


def write(state: dict[str, Any], path: Path) -> None:
    """Write a state, whole or not at all."""
    import torch

    with whole(path) as f:
        torch.save(state, f)


def read(path: Path, *, device: str = "cpu") -> dict[str, Any]:
    """Return the state in a checkpoint, with nothing in it executed.

    Raises:
        Damaged: it was cut short or changed.
        UserError: it is whole, but not a state as genlab writes it.
        FileNotFoundError: it is gone.
    """
    import torch

    verify(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # whatever a hostile file makes the reader raise: it is none of genlab's
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise
        first = (
            str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        )
        raise UserError(f"{path} is unreadable: it is no checkpoint of genlab ({first})") from error
    wrong = [
        k
        for k, types in SETS.items()
        if not isinstance(state, dict) or not isinstance(state.get(k, ...), types)
    ]
    if not wrong and state["best"] is not None and set(state["best"]) != {"value", "step", "since"}:
        wrong = ["best"]
    if not wrong and not all(isinstance(losses, dict) for losses in state["pending"]):
        wrong = ["pending"]
    if wrong or state["step"] < 0 or state["pulled"] < 0:
        raise UserError(
            f"{path} is unreadable: it is no checkpoint of genlab (no {', '.join(wrong) or 'step'} as it has)"
        )
    return state


def checksum(weights: dict[str, Any]) -> str:
    """Return the CRC-32 of all tensors of a state dict that was read, in hexadecimal: some 100 ms for 100 MB."""
    import torch

    crc = 0
    for value in weights.values():
        if isinstance(
            value, torch.Tensor
        ):  # its bytes as they are: a stranger's may be one number that claims to be many
            crc = zlib.crc32(
                torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).numpy(), crc
            )
    return f"{crc:08x}"


def verify(path: Path) -> None:
    """Compare every part of a checkpoint with its CRC-32, which torch.load does not: some 30 ms for 100 MB.

    torch.save stores its parts side by side and uncompressed, so that a file of that form is never larger in memory than on disk.

    Raises:
        Damaged: a part differs, or the file was cut short.
        UserError: its parts are compressed or overlap.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            listed = parts.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in listed) or (
                sum(part.file_size for part in listed) > path.stat().st_size
            ):
                raise UserError(
                    f"{path} is unreadable: it unpacks to more than it holds, as no checkpoint of genlab does"
                )
            broken = parts.testzip()
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(
            f"{path} is truncated or unreadable ({' '.join(str(error).split())})"
        ) from error
    if broken is not None:
        raise Damaged(f"{path} is damaged: its part {broken} is not what was written")
