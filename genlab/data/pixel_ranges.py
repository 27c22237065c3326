"""The pixel values of black and white, for files of other numbers than bytes."""

from __future__ import annotations

import math
from pathlib import Path

from genlab.data.image_decoding import (
    DECODE_ERRORS,
    FULL_RANGES,
    Depth,
    Range,
    file_range_of_depth,
    read_image_header,
)
from genlab.data.image_files import find_min_and_max_pixel
from genlab.errors import UserError

BINARY_RANGE: Range = (0.0, 1.0)
BYTE_RANGE: Range = (0.0, 255.0)
# Ends of the ranges that files of integers have: 1, 8, 10, 12, 14 and 16 bits.
INTEGER_ENDS = (1, 255, 1023, 4095, 16383, 65535)
DARK_FRACTION = 0.25  # of the range: images without a brighter pixel would come out nearly black
ROUNDING = 1e-4  # of the last digit


def find_pixel_ranges(
    files: list[Path], option: str, notes: list[str], file_range: Range | None = None
) -> dict[Depth, Range]:
    """Return the values that are black and white in images of more than 8 bits, by depth.

    Args:
        option: where the files were named, for messages, as "samples=photos".
        notes: takes what was decided.
        file_range: the values of black and white, if they are given.

    Raises:
        UserError: they cannot be known.
    """
    by_depth: dict[Depth, list[Path]] = {}
    for file in files:
        try:
            by_depth.setdefault(read_image_header(file).depth, []).append(file)
        except DECODE_ERRORS:  # it is met again, and named, when it is decoded
            continue
    ranges: dict[Depth, Range] = {}
    for depth, found in by_depth.items():
        if depth == "8-bit":
            continue
        if file_range is not None:
            ranges[depth] = file_range_of_depth(depth, file_range)
        elif extent := find_min_and_max_pixel(found):
            what = f"the {len(found):,} {depth} images, as {found[0].name},"
            try:
                ranges[depth], note = choose_pixel_range_and_note(depth, extent, what)
            except UserError as error:
                raise UserError(
                    f"{option}: {what} have values from {extent[0]:g} to {extent[1]:g}, "
                    "which does not say which are black and white: save them with 8 bits"
                ) from error
            notes.append(note)
    return ranges


def choose_pixel_range_and_note(depth: Depth, extent: Range, what: str) -> tuple[Range, str]:
    """Return the values of black and white in images, and a note for the run's summary.

    Args:
        depth: the numbers of the pixels.
        extent: the least and the largest value in the images.
        what: the images in messages, as "the 16-bit images of photos".

    Raises:
        UserError: the range cannot be known; the message says what to set.
    """
    low, high = extent
    choices: list[Range]
    if depth in FULL_RANGES:
        choices = [FULL_RANGES[depth]]
    elif depth == "32-bit":
        choices = [BINARY_RANGE, BYTE_RANGE, FULL_RANGES["16-bit"]]
    else:
        choices = [BINARY_RANGE, BYTE_RANGE]
    for bottom, top in choices:
        is_blank = low == high == 0
        end = max(bottom, top)
        if is_blank or (low >= min(bottom, top) and DARK_FRACTION * end <= high <= end):
            note = f"{what} have values from {low:g} to {high:g}"
            return (bottom, top), f"{note}; {bottom:g} is black and {top:g} white"
    suggestion = ",".join(f"{value:g}" for value in suggest_pixel_range(depth, extent))
    alternative = ""
    if depth in FULL_RANGES and low >= 0:
        top = max(FULL_RANGES[depth])
        alternative = f", or dataset.file_range=[0,{top:g}] if they are meant to be nearly black"
    raise UserError(
        f"{what} have values from {low:g} to {high:g}, which does not say which are black and "
        f"white: set them, as dataset.file_range=[{suggestion}]{alternative}"
    )


def suggest_pixel_range(depth: Depth, extent: Range) -> Range:
    """Return a usual range that contains the values, or else their own."""
    low, high = extent
    if depth in ("8-bit", "16-bit color"):
        return 0.0, high
    if low >= 0 and depth != "float":
        return 0.0, float(next((end for end in INTEGER_ENDS if high <= end), high))
    if low >= -1 and high <= 1:
        return (-1.0, 1.0) if low < 0 else (0.0, round_outward_to_2_digits(high, up=True))
    return (
        round_outward_to_2_digits(low, up=False) if low < 0 else 0.0,
        round_outward_to_2_digits(high, up=True),
    )


def round_outward_to_2_digits(value: float, *, up: bool) -> float:
    """Return the next number of two digits that is not below (`up`) or not above the value."""
    if not value:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    slack = ROUNDING if up else -ROUNDING  # 0.1 as float32 is a little more than 0.1
    return (math.ceil if up else math.floor)(value / unit - slack) * unit
