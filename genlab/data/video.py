"""Films of which the past is the source and the future the target: bouncing digits made on the fly, and folders of frames."""

import math
import re
from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import SPLITS, Split
from genlab.data.image_dataset import Images
from genlab.data.image_files import Found
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError
from genlab.seeding import mix
from genlab.spec import Batch, Positive, Spec

STEP = 0.1  # how far a digit moves from frame to frame, as a share of the way that it has


class Films(Images, ABC):
    """Items of `past` + `future` frames: x (B, future, C, H, W) and cond (B, past, C, H, W).

    A subclass makes the frames of raw items out of `store`, a tensor that is moved to each device once.
    """

    past: int
    future: int
    store: Tensor

    @abstractmethod
    def frames(self, items: Tensor, store: Tensor) -> Tensor:
        """Return the frames uint8 (B, past + future, C, H, W) of raw items (B, …)."""

    def hold_films(
        self,
        splits: dict[str, Split],
        shape: tuple[int, ...],
        missing: dict[str, str] | None = None,
    ) -> None:
        """Take the raw items of films whose frames have the shape (C, H, W)."""
        self.hold_images(splits, shape=shape, missing=missing)
        film = lambda n: replace(self.spec, kind="video", shape=(n, *shape))  # noqa: E731
        self.spec: Spec = replace(film(self.future), source=film(self.past), task="forecast")
        self._stores: dict[torch.device, Tensor] = {}

    def reaching(self, n: int) -> "Films":
        """Return the same films with n future frames, whatever this set has."""
        other = copy(self)
        other.future = n
        other.hold_windows()
        return other

    @abstractmethod
    def hold_windows(self) -> None:
        """Take the raw items of films of `past` + `future` frames."""

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if x.device not in self._stores:
            self._stores[x.device] = self.store.to(x.device)
        film = self.prepare(self.frames(x, self._stores[x.device]), generator, augment=augment)
        return Batch(film[:, self.past :], None, film[:, : self.past])


# --- made on the fly --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class MovingMNIST(Films):
    """Digits that bounce in a square: Srivastava et al. 2015, https://arxiv.org/abs/1502.04681, section 4.1.

    Each digit starts anywhere, with a velocity of length 0.1 of its way in any direction; where two overlap the lighter
    pixel shows. A sequence is a function of (split_seed, its number) alone. Training sequences are of the training digits
    of `of`, those of the two other splits of its test digits.

    Args:
        of: the images that move.
        size: side of the frames, None: 64.
        past, future: frames given, and frames to be foretold.
        digits: in each sequence.
        n: training sequences.
        held: sequences of the validation and of the test split.
    """

    of: Any
    past: Positive = 10
    future: Positive = 10
    digits: Positive = 2
    n: Positive = 100_000
    held: Positive = 10_000
    name = "moving_mnist"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.canvas = self.side or 64
        pools = [self.of.prepare.shown(self.of.arrays(split)[0]) for split in ("train", "test")]
        self.store = torch.cat(pools)  # (N, C, h, w) uint8, levels 0 … 255
        if (side := max(self.store.shape[2:])) > self.canvas:
            raise UserError(
                f"dataset.size={self.canvas} is less than the {side} pixels of what moves"
            )
        self.trained = len(pools[0])
        self.hold_windows()

    def hold_windows(self) -> None:
        end = len(self.store)
        kinds = {"train": (self.n, 0, self.trained)} | dict.fromkeys(
            SPLITS[1:], (self.held, self.trained, end)
        )
        splits = {
            name: Split(
                self.ways(
                    *kinds[name], generator=torch.Generator().manual_seed(mix(self.split_seed, i))
                )
            )
            for i, name in enumerate(SPLITS)
        }
        self.hold_films(splits, (self.store.shape[1], self.canvas, self.canvas))

    def ways(self, n: int, first: int, end: int, *, generator: torch.Generator) -> Tensor:
        """Return n raw items float32 (n, digits, 5): which of the images first … end−1, its start (2,), its velocity (2,)."""
        which = torch.randint(first, end, (n, self.digits, 1), generator=generator).float()
        start = torch.rand(n, self.digits, 2, generator=generator)
        angle = 2 * math.pi * torch.rand(n, self.digits, 1, generator=generator)
        return torch.cat([which, start, STEP * angle.sin(), STEP * angle.cos()], 2)

    def frames(self, items: Tensor, store: Tensor) -> Tensor:
        t, side, (channels, h, w) = self.past + self.future, self.canvas, store.shape[1:]
        at = bounced(items[..., 1:3], items[..., 3:5], t)  # (B, D, T, 2), 0 … 1
        corner = (at * at.new_tensor([side - h, side - w])).long()
        row = corner[..., 0, None] + torch.arange(h, device=items.device)  # (B, D, T, h)
        column = corner[..., 1, None] + torch.arange(w, device=items.device)  # (B, D, T, w)
        pixel = (row[..., :, None] * side + column[..., None, :]).flatten(3)  # (B, D, T, h·w)
        film = torch.zeros(
            len(items), t, channels, side * side, dtype=torch.uint8, device=items.device
        )
        for d in range(self.digits):
            where = pixel[:, d, :, None].expand(-1, -1, channels, -1)  # (B, T, C, h·w)
            ink = store[items[:, d, 0].long()].flatten(2)[:, None].expand_as(where)
            film.scatter_(3, where, torch.maximum(film.gather(3, where), ink))
        return film.unflatten(3, (side, side))


def bounced(start: Tensor, velocity: Tensor, steps: int) -> Tensor:
    """Return the places (…, steps, 2) of points that move in the unit square, stop at a side, and turn back from it."""
    at, places = start, []
    for _ in range(steps):
        at = at + velocity
        velocity = torch.where((at <= 0) | (at >= 1), -velocity, velocity)
        at = at.clamp(0, 1)
        places.append(at)
    return torch.stack(places, -2)


# --- from files -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class FramesFolder(Films, ImageFolder):
    """Windows of films whose frames are image files, numbered in their names: a folder of frames, or one such folder a film.

    The frames are held decoded in memory. Where train/, val/ and test/ do not say the splits, each film's end is held out,
    so that no frame is in two splits.

    Args:
        past, future: frames given, and frames to be foretold.
        every: frames from the start of one window to the next.
    """

    past: Positive = 4
    future: Positive = 1
    every: Positive = 1
    strict: bool = field(default=True, init=False)  # a frame that is skipped would be a jump
    name = "frames_folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.splits["train"].x, Tensor):
            raise UserError("frames_folder holds its frames in memory, and they do not fit into dataset.resident_mb; "
                            "raise it, or set a smaller dataset.size")  # fmt: skip
        self.store = torch.cat([self.splits[name].x for name in SPLITS if len(self.splits[name])])
        self.hold_windows()

    def hold_windows(self) -> None:
        whole, first, windows = self.past + self.future, 0, {}
        for name in SPLITS:
            starts = [torch.zeros(0, dtype=torch.int64)]
            for length in self.lengths[name]:
                starts.append(torch.arange(first, first + max(0, length - whole + 1), self.every))
                first += length
            windows[name] = Split(torch.cat(starts))
        if not len(windows["train"]):
            raise UserError(
                f"no film of {self.path} has {whole} frames to train on; set dataset.past and dataset.future"
            )
        short = f"no film has {whole} frames there; dataset.validation and dataset.test are the shares held out"
        self.hold_films(windows, tuple(self.store.shape[1:]), dict.fromkeys(SPLITS, short))

    def listed(self, folder: Path) -> dict[str, Found]:
        return {
            split: Found(sorted(found.paths, key=counted))
            for split, found in super().listed(folder).items()
        }

    def divided(self, found: dict[str, Found]) -> dict[str, Found]:
        parts = {split: films(part.paths) for split, part in found.items()}
        shares = {"test": self.test, "validation": self.validation}
        for split in [split for split in shares if split not in parts]:
            sizes = [round(shares[split] * len(film)) for film in films(found["train"].paths)]
            pairs = list(zip(parts["train"], sizes, strict=True))
            parts[split] = [film[len(film) - size :] for film, size in pairs]
            parts["train"] = [film[: len(film) - size] for film, size in pairs]
        self.lengths = {split: [len(film) for film in parts[split]] for split in SPLITS}
        return {split: Found([path for film in parts[split] for path in film]) for split in SPLITS}

    def frames(self, items: Tensor, store: Tensor) -> Tensor:
        return store[items[:, None] + torch.arange(self.past + self.future, device=items.device)]


def counted(path: Path) -> tuple:
    """Return what sorts paths by their folder, then by the numbers in their names: frame_9 before frame_10."""
    parts = re.split(r"(\d+)", path.stem)
    return path.parent, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def films(paths: list[Path]) -> list[list[Path]]:
    """Return sorted paths folder by folder."""
    return [list(group) for _, group in groupby(paths, key=lambda path: path.parent)]
