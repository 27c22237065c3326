"""NumPy files of plain numbers, whoever made them: nothing is unpickled, and no more memory taken than the machine has."""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from genlab.errors import UserError

BROKEN = (
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)
KINDS = "fiub"  # floats, signed and unsigned whole numbers, booleans
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz by their names, or that of a .npy as x.

    Args:
        what: the file in messages, as "samples=drawn.npz".

    Raises:
        UserError: it is none of both, holds other things than numbers, or more of them than half of the memory.
    """
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as f:
                return {"x": checked(f, path.stat().st_size, what)}
        with zipfile.ZipFile(path) as parts:
            room = sum(part.file_size for part in parts.infolist())
            if room > memory():
                raise UserError(
                    f"{what} unpacks to {room / 2**30:,.1f} GB, more than half of this machine's memory"
                )
            found = {}
            for part in parts.infolist():
                with parts.open(part) as f:
                    found[part.filename.removesuffix(".npy")] = checked(f, part.file_size, what)
        return found
    except BROKEN as error:
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno):
            raise
        raise UserError(
            f"{what} is no NumPy file of plain numbers (.npz or .npy): {' '.join(str(error).split())}"
        ) from error


def checked(f: IO[bytes], size: int, what: str) -> np.ndarray:
    """Return the array in an open file of `size` bytes, after its header has been held against that size."""
    version = np.lib.format.read_magic(f)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format")
    try:
        shape, fortran, dtype = HEADERS[version](f)
    except (
        SyntaxError,
        tokenize.TokenError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:  # Python's literals
        raise ValueError(f"a header that cannot be read ({type(error).__name__})") from error
    if dtype.kind not in KINDS:
        raise UserError(f"{what} holds {dtype}; it must hold plain numbers")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header says {shape} of {dtype}, which is more than the file holds")
    data = f.read(math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False))


def memory() -> int:
    """Return half of the machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
