"""Untrusted NumPy files of plain numbers: nothing is unpickled, memory is bounded."""

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

# Errors that NumPy and zipfile raise for a damaged file.
READ_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)
DTYPE_KINDS = "fiub"  # floats, signed and unsigned integers, booleans
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_numpy_arrays(path: Path, what: str, *, allow_text: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz by name, or that of a .npy as x.

    Args:
        what: the file in error messages, as "samples=drawn.npz".
        allow_text: allow arrays of text too.

    Raises:
        UserError: it is neither, has other things than numbers, or takes more than half of the
            memory.
    """
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as f:
                return {"x": read_npy_array(f, path.stat().st_size, what, allow_text=allow_text)}
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(part.file_size for part in archive.infolist())
            if num_bytes > half_machine_memory_bytes():
                raise UserError(
                    f"{what} unpacks to {num_bytes / 2**30:,.1f} GB, more than half of this "
                    "machine's memory"
                )
            arrays = {}
            for part in archive.infolist():
                with archive.open(part) as f:
                    name = part.filename.removesuffix(".npy")
                    arrays[name] = read_npy_array(f, part.file_size, what, allow_text=allow_text)
        return arrays
    except READ_ERRORS as error:
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno):
            raise
        raise UserError(
            f"{what} is not a NumPy file of plain numbers (.npz or .npy): "
            f"{' '.join(str(error).split())}"
        ) from error


def read_npy_array(f: IO[bytes], size: int, what: str, *, allow_text: bool = False) -> np.ndarray:
    """Return the array in an open file of `size` bytes; its header must fit the size."""
    version = np.lib.format.read_magic(f)
    if version not in HEADER_READERS:
        raise ValueError(f"version {version} of the format")
    try:
        shape, fortran, dtype = HEADER_READERS[version](f)
    except (  # of Python's parser of literals
        SyntaxError,
        tokenize.TokenError,
        LookupError,
        TypeError,
        RecursionError,
    ) as error:
        raise ValueError(f"a header that cannot be read ({type(error).__name__})") from error
    if dtype.kind not in DTYPE_KINDS and not (allow_text and dtype.kind == "U"):
        raise UserError(f"{what} has {dtype}; it must have plain numbers")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header says {shape} of {dtype}, which is more than the file has")
    data = f.read(math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False))


def half_machine_memory_bytes() -> int:
    """Return half of the machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
