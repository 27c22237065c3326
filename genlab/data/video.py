"""Videos with the past as source and the future as target.

Bouncing digits are made on the fly; folders of frames are read.
"""

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
from genlab.data.image_files import ImageFiles
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError
from genlab.seeding import derive_seed
from genlab.spec import Batch, DataSpec, Positive

STEP_LENGTH = 0.1  # distance that a digit moves per frame, as a fraction of its free way


class VideoDataset(Images, ABC):
    """Items of `context_frames` + `target_frames` frames.

    x is (B, target_frames, C, H, W) and cond (B, context_frames, C, H, W). A subclass makes the
    frames of raw items from `store`, a tensor that is moved to each device once.
    """

    context_frames: int
    target_frames: int
    store: Tensor

    @property
    def num_frames(self) -> int:
        """Frames of an item, context and target."""
        return self.context_frames + self.target_frames

    @abstractmethod
    def frames(self, items: Tensor, store: Tensor) -> Tensor:
        """Return the frames uint8 (B, num_frames, C, H, W) of raw items (B, …)."""

    def set_video_splits(
        self,
        splits: dict[str, Split],
        shape: tuple[int, ...],
        hints: dict[str, str] | None = None,
    ) -> None:
        """Set the raw items of videos whose frames have the shape (C, H, W)."""
        self.set_image_splits(splits, shape=shape, hints=hints)
        one_frame = replace(self.spec, kind="video")
        source = replace(one_frame, shape=(self.context_frames, *shape))
        self.spec: DataSpec = replace(
            one_frame, shape=(self.target_frames, *shape), source=source, task="forecast"
        )
        self._stores: dict[torch.device, Tensor] = {}

    def with_target_frames(self, n: int) -> "VideoDataset":
        """Return the same videos with n target frames."""
        other = copy(self)
        other.target_frames = n
        other.set_windows()
        return other

    @abstractmethod
    def set_windows(self) -> None:
        """Set the raw items of videos with `num_frames` frames."""

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if x.device not in self._stores:
            self._stores[x.device] = self.store.to(x.device)
        frames = self.frames(x, self._stores[x.device])
        video = self.preprocess(frames, generator, augment=augment)
        return Batch(video[:, self.context_frames :], None, video[:, : self.context_frames])


# --- made on the fly ------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class MovingMNIST(VideoDataset):
    """Digits that bounce in a square: Srivastava et al. 2015, section 4.1.

    https://arxiv.org/abs/1502.04681. Each digit starts anywhere, with a velocity in any direction
    whose length is 0.1 of its free way; where two overlap, the brighter pixel shows. A sequence
    depends only on (split_seed, its number). Training sequences have the training digits of `base`,
    those of the two other splits its test digits.

    Args:
        base: the images that move.
        size: side of the frames, None: 64.
        context_frames, target_frames: frames given, and frames to predict.
        num_digits: digits in each sequence.
        n: training sequences.
        num_heldout: sequences of the validation and of the test split.
    """

    base: Any
    context_frames: Positive = 10
    target_frames: Positive = 10
    num_digits: Positive = 2
    n: Positive = 100_000
    num_heldout: Positive = 10_000
    name = "moving_mnist"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.canvas = self.side or 64
        pools = [
            self.base.preprocess.to_bytes(self.base.raw_arrays(split)[0])
            for split in ("train", "test")
        ]
        self.store = torch.cat(pools)  # (N, C, h, w) uint8, levels 0 … 255
        if (side := max(self.store.shape[2:])) > self.canvas:
            raise UserError(
                f"dataset.size={self.canvas} is smaller than the moving images of {side} pixels"
            )
        self.num_train_digits = len(pools[0])
        self.source_files = self.base.source_files
        self.set_windows()

    def set_windows(self) -> None:
        train_digits = (0, self.num_train_digits)
        test_digits = (self.num_train_digits, len(self.store))
        splits = {}
        for i, name in enumerate(SPLITS):
            generator = torch.Generator().manual_seed(derive_seed(self.split_seed, i))
            n, digits = (
                (self.n, train_digits) if name == "train" else (self.num_heldout, test_digits)
            )
            splits[name] = Split(self.draw_motions(n, *digits, generator=generator))
        self.set_video_splits(splits, (self.store.shape[1], self.canvas, self.canvas))

    def draw_motions(self, n: int, first: int, end: int, *, generator: torch.Generator) -> Tensor:
        """Return n raw items float32 (n, num_digits, 5) of the images first … end−1.

        The five numbers are the image's index, its start (2,) and its velocity (2,).
        """
        which = torch.randint(first, end, (n, self.num_digits, 1), generator=generator).float()
        start = torch.rand(n, self.num_digits, 2, generator=generator)
        angle = 2 * math.pi * torch.rand(n, self.num_digits, 1, generator=generator)
        return torch.cat([which, start, STEP_LENGTH * angle.sin(), STEP_LENGTH * angle.cos()], 2)

    def frames(self, items: Tensor, store: Tensor) -> Tensor:
        t, side, (channels, h, w) = self.num_frames, self.canvas, store.shape[1:]
        position = bounce(items[..., 1:3], items[..., 3:5], t)  # (B, D, T, 2), 0 … 1
        corner = (position * position.new_tensor([side - h, side - w])).long()
        row = corner[..., 0, None] + torch.arange(h, device=items.device)  # (B, D, T, h)
        column = corner[..., 1, None] + torch.arange(w, device=items.device)  # (B, D, T, w)
        pixel = (row[..., :, None] * side + column[..., None, :]).flatten(3)  # (B, D, T, h·w)
        video = torch.zeros(
            len(items), t, channels, side * side, dtype=torch.uint8, device=items.device
        )
        for d in range(self.num_digits):
            where = pixel[:, d, :, None].expand(-1, -1, channels, -1)  # (B, T, C, h·w)
            ink = store[items[:, d, 0].long()].flatten(2)[:, None].expand_as(where)
            video.scatter_(3, where, torch.maximum(video.gather(3, where), ink))
        return video.unflatten(3, (side, side))


def bounce(start: Tensor, velocity: Tensor, steps: int) -> Tensor:
    """Return the positions (…, steps, 2) of points that move in the unit square.

    A point stops at a side, and turns back from it.
    """
    position, positions = start, []
    for _ in range(steps):
        position = position + velocity
        velocity = torch.where((position <= 0) | (position >= 1), -velocity, velocity)
        position = position.clamp(0, 1)
        positions.append(position)
    return torch.stack(positions, -2)


# --- from files -----------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class FramesFolder(VideoDataset, ImageFolder):
    """Windows of videos whose frames are numbered image files: one folder of them per video.

    The frames are kept decoded in memory. If train/, val/ and test/ do not give the splits, the end
    of each video is held out, so that no frame is in two splits.

    Args:
        context_frames, target_frames: frames given, and frames to predict.
        window_stride: frames from the start of one window to the next.
    """

    context_frames: Positive = 4
    target_frames: Positive = 1
    window_stride: Positive = 1
    strict: bool = field(default=True, init=False)  # a skipped frame would be a jump
    name = "frames_folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.splits["train"].x, Tensor):
            raise UserError(
                "frames_folder keeps its frames in memory, and they do not fit into "
                "dataset.cache_limit_mb; raise it, or set a smaller dataset.size"
            )
        self.store = torch.cat([self.splits[name].x for name in SPLITS if len(self.splits[name])])
        self.set_windows()

    def set_windows(self) -> None:
        n, first, windows = self.num_frames, 0, {}
        for name in SPLITS:
            starts = [torch.zeros(0, dtype=torch.int64)]
            for length in self.video_lengths[name]:
                end = first + max(0, length - n + 1)
                starts.append(torch.arange(first, end, self.window_stride))
                first += length
            windows[name] = Split(torch.cat(starts))
        if not len(windows["train"]):
            raise UserError(
                f"no video of {self.path} has {n} frames to train on; set dataset.context_frames "
                "and dataset.target_frames"
            )
        hint = (
            f"no video has {n} frames there; dataset.validation and dataset.test are the fractions "
            "held out"
        )
        self.set_video_splits(windows, tuple(self.store.shape[1:]), dict.fromkeys(SPLITS, hint))

    def list_splits(self, folder: Path) -> dict[str, ImageFiles]:
        return {
            split: ImageFiles(sorted(files.paths, key=frame_order))
            for split, files in super().list_splits(folder).items()
        }

    def add_missing_splits(self, splits: dict[str, ImageFiles]) -> dict[str, ImageFiles]:
        videos = {split: group_by_folder(files.paths) for split, files in splits.items()}
        fractions = {"test": self.test, "validation": self.validation}
        for split in [split for split in fractions if split not in videos]:
            complete = group_by_folder(splits["train"].paths)
            sizes = [round(fractions[split] * len(video)) for video in complete]
            pairs = list(zip(videos["train"], sizes, strict=True))
            videos[split] = [video[len(video) - size :] for video, size in pairs]
            videos["train"] = [video[: len(video) - size] for video, size in pairs]
        self.video_lengths = {split: [len(video) for video in videos[split]] for split in SPLITS}
        return {
            split: ImageFiles([path for video in videos[split] for path in video])
            for split in SPLITS
        }

    def frames(self, items: Tensor, store: Tensor) -> Tensor:
        return store[items[:, None] + torch.arange(self.num_frames, device=items.device)]


def frame_order(path: Path) -> tuple[Path, list[tuple[int, str]]]:
    """Return a sort key: the folder, then the numbers in the name (frame_9 before frame_10)."""
    parts = re.split(r"(\d+)", path.stem)
    return path.parent, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def group_by_folder(paths: list[Path]) -> list[list[Path]]:
    """Return sorted paths in lists, one per folder."""
    return [list(group) for _, group in groupby(paths, key=lambda path: path.parent)]
