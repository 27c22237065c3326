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
from genlab.untrusted.files import half_memory_bytes, open_regular_file

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
MAX_ITEM_BYTES = 8  # of a number; torch does not read float128
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
        with open_regular_file(path) as file:
            if zipfile.is_zipfile(file):
                return read_npz_arrays(file, what, allow_text=allow_text)
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            return {"x": read_npy_array(file, size, what, allow_text=allow_text)}
    except READ_ERRORS as error:
        if isinstance(error, UserError) or getattr(error, "filename", None):
            raise
        raise UserError(
            f"{what} is not a NumPy file of plain numbers (.npz or .npy): "
            f"{' '.join(str(error).split())}"
        ) from error


def read_npz_arrays(
    file: IO[bytes], what: str, *, allow_text: bool = False
) -> dict[str, np.ndarray]:
    """Return the arrays of an open .npz by name.

    Raises:
        UserError: they take more than half of the memory.
    """
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        num_bytes = sum(part.file_size for part in archive.infolist())
        if num_bytes > half_memory_bytes():
            raise UserError(
                f"{what} unpacks to {num_bytes / 2**30:,.1f} GB, more than half of this "
                "machine's memory"
            )
        for part in archive.infolist():
            with archive.open(part) as f:
                name = part.filename.removesuffix(".npy")
                arrays[name] = read_npy_array(f, part.file_size, what, allow_text=allow_text)
    return arrays


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
    is_number = dtype.kind in DTYPE_KINDS and dtype.itemsize <= MAX_ITEM_BYTES
    if not is_number and not (allow_text and dtype.kind == "U"):
        raise UserError(f"{what} has {dtype}; it must have plain numbers")
    is_shape = all(type(side) is int and side >= 0 for side in shape)
    if not is_shape or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header says {shape} of {dtype}, which is more than the file has")
    data = f.read(math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if fortran else "C")
    return torch_readable(np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False)))


def torch_readable(array: np.ndarray) -> np.ndarray:
    """Return an array without unsigned integers of over 8 bits, which torch hardly supports.

    Raises:
        ValueError: a number does not fit 64 bits with a sign.
    """
    if array.dtype.kind != "u" or array.dtype.itemsize == 1:
        return array
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"the number {array.max()} is too large")
    return array.astype(np.int64)


def read_label_array(array: np.ndarray, n: int, num_classes: int, what: str) -> np.ndarray:
    """Return the labels (N,) int64 of n samples, from the array `y` of a file.

    Args:
        num_classes: of the data; 0 without classes.
        what: the file, for messages.

    Raises:
        UserError: they are not whole numbers of classes, one for each sample.
    """
    if array.shape != (n,):
        raise UserError(f"{what}: y is {array.shape}, and there are {n:,} samples")
    if array.dtype.kind not in DTYPE_KINDS:
        raise UserError(f"{what}: y has {array.dtype}; it must have the numbers of classes")
    labels = array.astype(np.float64)
    wrong = ~np.isfinite(labels) | (labels != np.round(labels)) | (labels < 0)
    if num_classes:
        wrong |= labels >= num_classes
    if wrong.any():
        i = int(wrong.argmax())
        allowed = f"0 to {num_classes - 1:,}" if num_classes else "0, 1, 2, …"
        raise UserError(
            f"{what}: y[{i}] is {array[i]}, which is not the number of a class ({allowed})"
        )
    return array.astype(np.int64)
