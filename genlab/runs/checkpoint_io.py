"""Checkpoint files: a trainer's state, written by torch.save and checked when it is read."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from genlab.errors import UserError, is_out_of_memory_error
from genlab.fileio import atomic_open
from genlab.runs.migrations import FORMAT, refuse_newer_format
from genlab.untrusted.files import half_memory_bytes, open_regular_file

State = dict[str, Any]

# the entries of every state, with their types
ENTRIES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "batches_consumed": (int,),
    "seed": (int,),
    "seconds": (float, int),
    "best": (dict, type(None)),
    "unlogged_losses": (list,),
    "model": (dict,),
    "ema": (dict, type(None)),
    "optimizers": (dict,),
    "scaler": (dict,),
}


class CorruptCheckpointError(UserError):
    """The bytes of a checkpoint are not those that were written."""


def write_checkpoint(state: State, path: Path) -> None:
    """Write a state atomically."""
    import torch

    with atomic_open(path) as f:
        torch.save(state, f)


def read_checkpoint(
    path: Path, *, device: str = "cpu", migrate: Callable[[State], State] | None = None
) -> State:
    """Return the state in a checkpoint, without executing anything in it.

    Args:
        migrate: translates a state of an older format.

    Raises:
        CorruptCheckpointError: the file was truncated or changed.
        UserError: the file is intact, but not a checkpoint of genlab, or of a newer genlab.
        FileNotFoundError: the file is gone.
    """
    import torch

    from genlab.untrusted.states import check_plain_values

    try:
        with open_regular_file(path, half_memory_bytes()) as file:
            verify_checksums(file, path)
            file.seek(0)
            state = torch.load(file, map_location=device, weights_only=True)
    except (FileNotFoundError, MemoryError, UserError):
        raise
    except Exception as error:  # an untrusted file can make the reader raise anything
        if is_out_of_memory_error(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{path} is unreadable: it is not a checkpoint of genlab ({lines[0][:120]})"
        ) from error
    if isinstance(state, dict):
        try:
            check_plain_values(state)
        except UserError as error:
            raise UserError(f"{path} is unreadable: {error}") from error
        refuse_newer_format(state.get("format", 1), path)
        if state.get("format", 1) != FORMAT and migrate:
            state = migrate(state)
    if wrong := invalid_checkpoint_entries(state):
        raise UserError(
            f"{path} is unreadable: it is not a checkpoint of genlab (no valid {', '.join(wrong)})"
        )
    return state


def invalid_checkpoint_entries(state: Any) -> list[str]:
    """Return the names of entries that are missing in a state, or not as genlab writes them."""
    if not isinstance(state, dict):
        return list(ENTRIES)
    wrong = [
        key
        for key, types in ENTRIES.items()
        if not isinstance(state.get(key, ...), types) or isinstance(state[key], bool)
    ]
    if wrong:
        return wrong
    if state["best"] is not None and set(state["best"]) != {"value", "step", "since"}:
        return ["best"]
    if not all(isinstance(losses, dict) for losses in state["unlogged_losses"]):
        return ["unlogged_losses"]
    return [key for key in ("step", "batches_consumed") if state[key] < 0]


def state_dict_crc32(weights: State) -> str:
    """Return the CRC-32 of all tensors of a loaded state dict, in hexadecimal.

    Takes some 100 ms for 100 MB.
    """
    import torch

    crc = 0
    for value in weights.values():
        if isinstance(value, torch.Tensor):
            # the stored bytes: a tensor of an untrusted file may be one number expanded to many
            stored = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
            crc = zlib.crc32(stored.numpy().data, crc)
    return f"{crc:08x}"


def verify_checksums(file: IO[bytes], path: Path) -> None:
    """Compare every part of an open checkpoint with its CRC-32, which torch.load does not.

    Takes some 30 ms for 100 MB. torch.save stores its parts next to each other and uncompressed, so
    a file of that form is never larger in memory than on disk.

    Raises:
        CorruptCheckpointError: a part differs, or the file was truncated.
        UserError: its parts are compressed or overlap.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            is_compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            size = os.fstat(file.fileno()).st_size
            if is_compressed or sum(part.file_size for part in parts) > size:
                raise UserError(
                    f"{path} is unreadable: it unpacks to more than its size, "
                    "unlike any checkpoint of genlab"
                )
            broken = archive.testzip()
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        reason = " ".join(str(error).split())
        raise CorruptCheckpointError(f"{path} is truncated or unreadable ({reason})") from error
    if broken is not None:
        raise CorruptCheckpointError(
            f"{path} is damaged: its part {broken} is not what was written"
        )
