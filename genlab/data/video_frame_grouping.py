"""Group the frames of a folder into films, by folders and by file names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from genlab.errors import UserError

MAX_NAMES_SHOWN = 3
NUMBER = re.compile(r"(\d+)")


@dataclass
class Films:
    """The films of one folder of frames, each in the order of its frames.

    Attributes:
        films: name -> frames.
        by_name: whether the names of the files say the films.
    """

    films: dict[str, list[Path]] = field(default_factory=dict)
    by_name: bool = False


def frame_sort_key(path: Path) -> tuple[Path, list[tuple[int, str]]]:
    """Return a sort key: the folder, then the numbers in the name (frame_9 before frame_10)."""
    parts = NUMBER.split(path.stem)
    return path.parent, [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def film_name_and_frame_number(path: Path) -> tuple[str, int]:
    """Return the name of a film and the number of the frame: obj3__10.png is (obj3__, 10).

    The last number counts the frames; -1 without a number.
    """
    parts = NUMBER.split(path.stem)
    if len(parts) == 1:
        return path.stem, -1
    return "*".join(("".join(parts[:-2]), parts[-1])).rstrip("*"), int(parts[-2])


def group_frames_into_films(folder: Path, paths: list[Path]) -> Films:
    """Return the films of the frames in one folder.

    Frames with one name and different numbers are one film. Several names are several films, if
    most frames share their name with others.

    Raises:
        UserError: the names do not say which frames are one film, or in which order.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted(paths, key=frame_sort_key):
        by_name.setdefault(film_name_and_frame_number(path)[0], []).append(path)
    singles = sum(len(frames) == 1 for frames in by_name.values())
    skeletons = {NUMBER.sub("#", path.stem) for path in paths}
    ordered = sorted(paths, key=frame_sort_key)
    if len(by_name) == 1 or (singles == len(by_name) and len(skeletons) == 1):
        films = Films({"": ordered})
    elif singles * 2 <= len(paths):
        films = Films(by_name, by_name=True)
    else:
        names = ", ".join(path.name for path in ordered[:MAX_NAMES_SHOWN])
        raise UserError(
            f"the names of the {len(paths):,} images in {folder} ({names}, …) do not say which "
            "frames follow each other: put the frames of each video into a separate folder, or "
            "number them, as video1_001.png"
        )
    for frames in films.films.values():
        refuse_duplicate_frame_numbers(frames)
    return films


def refuse_duplicate_frame_numbers(frames: list[Path]) -> None:
    """Refuse a video with two frames of the same number, as frame_1.png and frame_01.png.

    Raises:
        UserError: names both.
    """
    for first, second in pairwise(frames):
        if frame_sort_key(first) == frame_sort_key(second):
            raise UserError(
                f"{first} and {second.name} are the same frame of a video; remove one of them"
            )


def count_frame_gaps_with_example(frames: list[Path]) -> tuple[int, str]:
    """Return the number of gaps in the numbers of a film's frames, and an example of one.

    The usual distance is the most frequent one.
    """
    numbers = [film_name_and_frame_number(path)[1] for path in frames]
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    if not steps:
        return 0, ""
    usual = Counter(steps).most_common(1)[0][0]
    gaps = [i for i, step in enumerate(steps) if step > usual]
    example = f"{frames[gaps[0]].name} → {frames[gaps[0] + 1].name}" if gaps else ""
    return len(gaps), example
