"""Videos with the past as source and the future as target.

Bouncing digits are made on the fly; folders of frames are read.
"""

import math
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
from genlab.data.video_frame_grouping import (
    count_frame_gaps_with_example,
    frame_sort_key,
    group_frames_into_films,
)
from genlab.errors import UserError, make_printable
from genlab.seeding import derive_seed
from genlab.spec import Batch, DataSpec, Fraction, Positive
from genlab.untrusted.files import real_path

STEP_LENGTH = 0.1  # distance that a digit moves per frame, as a fraction of its free way
MAX_PUSHED_STEP = 0.2  # the longest, along each side, that pushes can make it
PUSH_STREAM = 7  # of the seeds of pushes
MOTION_SIZE = 5  # numbers of a digit: the index of its image, its start, its velocity
ACTION_SIZE = 2  # numbers of an action: a push down and to the right


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
    def render_frames(self, items: Tensor, store: Tensor) -> Tensor:
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
        other.set_video_items()
        return other

    def max_target_frames(self, split: str) -> int | None:
        """Return the number of frames that can follow the context in a split; None: any number."""
        return None

    @abstractmethod
    def set_video_items(self) -> None:
        """Set the raw items of videos with `num_frames` frames."""

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        if x.device not in self._stores:
            self._stores[x.device] = self.store.to(x.device)
        frames = self.render_frames(x, self._stores[x.device])
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
        push: 0 disables it. Otherwise a push changes the velocity of the only digit before each
            frame, along each side by up to this fraction of its free way. The pushes are uniform.
            Each frame of the source has two more channels: the push, from −1 to 1, before the next.
        n: training sequences.
        num_heldout: sequences of the validation and of the test split.
    """

    base: Any
    context_frames: Positive = 10
    target_frames: Positive = 10
    num_digits: Positive = 2
    push: Fraction = 0.0
    n: Positive = 100_000
    num_heldout: Positive = 10_000
    name = "moving_mnist"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.canvas = self.side or 64
        pools = [
            self.base.preprocess.levels_to_bytes(self.base.raw_items_and_labels(split)[0])
            for split in ("train", "test")
        ]
        self.store = torch.cat(pools)  # (N, C, h, w) uint8, levels 0 … 255
        if (side := max(self.store.shape[2:])) > self.canvas:
            raise UserError(
                f"dataset.size={self.canvas} is smaller than the moving images of {side} pixels"
            )
        if self.push and self.num_digits > 1:
            raise UserError(
                f"dataset.push={self.push} moves a single digit, and there are {self.num_digits}; "
                "set dataset.num_digits=1"
            )
        if self.push and self.flip:
            raise UserError(
                "preprocess.flip=true would mirror the digits, but not the pushes; set it to false"
            )
        self.num_train_digits = len(pools[0])
        self.source_files = self.base.source_files
        self.set_video_items()

    def set_video_items(self) -> None:
        train_digits = (0, self.num_train_digits)
        test_digits = (self.num_train_digits, len(self.store))
        splits = {}
        for i, name in enumerate(SPLITS):
            generator = torch.Generator().manual_seed(derive_seed(self.split_seed, i))
            n, digits = (
                (self.n, train_digits) if name == "train" else (self.num_heldout, test_digits)
            )
            motions = self.draw_motions(n, *digits, generator=generator)
            if self.push:
                pushes = self.draw_pushes(n, derive_seed(self.split_seed, i, PUSH_STREAM))
                motions = torch.cat([motions, pushes.flatten(1)[:, None]], 2)
            splits[name] = Split(motions)
        channels = self.store.shape[1]
        self.set_video_splits(splits, (channels, self.canvas, self.canvas))
        if self.push:
            assert self.spec.source is not None
            frames = (self.context_frames, channels + ACTION_SIZE, self.canvas, self.canvas)
            source = replace(self.spec.source, shape=frames, action_channels=ACTION_SIZE)
            self.spec = replace(self.spec, source=source)

    def draw_motions(self, n: int, first: int, end: int, *, generator: torch.Generator) -> Tensor:
        """Return n raw items float32 (n, num_digits, 5) of the images first … end−1.

        The five numbers are the image's index, its start (2,) and its velocity (2,).
        """
        which = torch.randint(first, end, (n, self.num_digits, 1), generator=generator).float()
        start = torch.rand(n, self.num_digits, 2, generator=generator)
        angle = 2 * math.pi * torch.rand(n, self.num_digits, 1, generator=generator)
        return torch.cat([which, start, STEP_LENGTH * angle.sin(), STEP_LENGTH * angle.cos()], 2)

    def draw_pushes(self, n: int, seed: int) -> Tensor:
        """Return pushes (n, num_frames, 2) from −1 to 1, the first of which do not depend on T."""
        frames = [
            torch.rand(
                n, ACTION_SIZE, generator=torch.Generator().manual_seed(derive_seed(seed, t))
            )
            for t in range(self.num_frames)
        ]
        return 2 * torch.stack(frames, 1) - 1

    def pushes_of_items(self, items: Tensor) -> Tensor:
        """Return the pushes (B, T, 2) of raw items (B, 1, 5 + 2T); push t is before frame t."""
        return items[:, 0, MOTION_SIZE:].unflatten(1, (-1, ACTION_SIZE))

    def with_pushes(self, items: Tensor, pushes: Tensor) -> Tensor:
        """Return raw items with other pushes (B, T, 2): what would have happened after them."""
        return torch.cat([items[..., :MOTION_SIZE], pushes.flatten(1)[:, None].to(items)], 2)

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        batch = super().make_batch(x, y, generator, augment=augment)
        if not self.push:
            return batch
        assert batch.cond is not None and self.spec.source is not None
        pushes = self.pushes_of_items(x)[:, 1 : self.context_frames + 1]
        return replace(batch, cond=append_actions(batch.cond, pushes, self.spec.source))

    def render_frames(self, items: Tensor, store: Tensor) -> Tensor:
        t, side, (channels, h, w) = self.num_frames, self.canvas, store.shape[1:]
        start, velocity = items[..., 1:3], items[..., 3:MOTION_SIZE]
        accelerations = None
        if self.push:
            accelerations = self.push * self.pushes_of_items(items)[:, None]  # (B, 1, T, 2)
        position = bouncing_positions(start, velocity, t, accelerations)  # (B, D, T, 2), 0 … 1
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


def append_actions(frames: Tensor, actions: Tensor, source: DataSpec) -> Tensor:
    """Return frames (B, P, C, H, W) with two channels of actions, as a model receives them.

    Args:
        actions: (B, P, 2) from −1 to 1, each between its frame and the next one.
        source: the DataSpec of the source.
    """
    low, high = source.range
    values = low + (high - low) * (actions.to(frames) + 1) / 2
    maps = values[..., None, None].expand(*values.shape, *frames.shape[-2:])
    return torch.cat([frames, maps], 2)


def bouncing_positions(
    start: Tensor, velocity: Tensor, steps: int, accelerations: Tensor | None = None
) -> Tensor:
    """Return the positions (…, steps, 2) of points that move in the unit square.

    A point stops at a side, and turns back from it.

    Args:
        accelerations: (…, steps, 2), added to the velocity before each step.
    """
    position, positions = start, []
    for t in range(steps):
        if accelerations is not None:
            velocity = velocity + accelerations[..., t, :]
            velocity = velocity.clamp(-MAX_PUSHED_STEP, MAX_PUSHED_STEP)
        position = position + velocity
        velocity = torch.where((position <= 0) | (position >= 1), -velocity, velocity)
        position = position.clamp(0, 1)
        positions.append(position)
    return torch.stack(positions, -2)


# --- from files -----------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class FramesFolder(VideoDataset, ImageFolder):
    """Windows of videos whose frames are numbered image files: one folder of them per video.

    Several videos may share a folder if their names say so, as obj1__0.png and obj2__0.png. The
    frames are kept decoded in memory. If train/, val/ and test/ do not give the splits, the end of
    each video is held out, so that no frame is in two splits.

    Args:
        context_frames, target_frames: frames given, and frames to predict.
        window_stride: frames from the start of one window to the next.
    """

    context_frames: Positive = 4
    target_frames: Positive = 1
    window_stride: Positive = 1
    strict: bool = field(default=True, init=False)  # a skipped frame would be a jump
    patch_size: Positive | None = field(default=None, init=False)  # frames have one size
    name = "frames_folder"
    has_class_folders = False
    names_note = ""  # of videos that share a folder

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.splits["train"].x, Tensor):
            raise UserError(
                "frames_folder keeps its frames in memory, and they do not fit into "
                "dataset.cache_limit_mb; raise it, or set a smaller dataset.size"
            )
        self.store = torch.cat([self.splits[name].x for name in SPLITS if len(self.splits[name])])
        self.set_video_items()
        if not len(self.splits["train"]):
            raise UserError(
                f"no video of {self.path} has {self.num_frames} frames to train on (the longest "
                f"has {max(self.video_lengths['train'])}); set dataset.context_frames and "
                "dataset.target_frames, or smaller dataset.validation and dataset.test"
            )
        self.count_short_videos()

    def set_video_items(self) -> None:
        n, first, windows = self.num_frames, 0, {}
        for name in SPLITS:
            starts = [torch.zeros(0, dtype=torch.int64)]
            for length in self.video_lengths[name]:
                end = first + max(0, length - n + 1)
                starts.append(torch.arange(first, end, self.window_stride))
                first += length
            windows[name] = Split(torch.cat(starts))
        if not any(len(split) for split in windows.values()):
            longest = max(length for lengths in self.video_lengths.values() for length in lengths)
            raise UserError(
                f"no video of {self.path} has {n} frames in one split (the longest has {longest}"
                f"{self.names_note and f'; {self.names_note}'}); set dataset.context_frames and "
                "dataset.target_frames"
            )
        hint = (
            f"no video has {n} frames there; dataset.validation and dataset.test are the fractions "
            "held out"
        )
        self.set_video_splits(windows, tuple(self.store.shape[1:]), dict.fromkeys(SPLITS, hint))

    def max_target_frames(self, split: str) -> int:
        return max([0, *self.video_lengths[split]]) - self.context_frames

    def count_short_videos(self) -> None:
        """Count the videos that are too short for a window, and those too short in training."""
        n = self.num_frames
        for name, length in self.full_lengths.items():
            if length < n:
                self.left_out.add(f"videos with less than {n} frames", f"{name} ({length})")
        short = sum(length < n for length in self.video_lengths["train"])
        if short := short - self.left_out.counts[f"videos with less than {n} frames"]:
            self.notes.append(
                f"{short:,} videos have less than {n} frames left to train on, because the end of "
                "each is held out"
            )

    # --- which frames are a video -----------------------------------------------------------------

    def list_images_by_split(self, folder: Path) -> dict[str, ImageFiles]:
        splits = super().list_images_by_split(folder)
        if self.folder_rules > 1:
            for split, files in splits.items():
                splits[split] = ImageFiles(self.leave_out_gif_files(files.paths, folder))
        if not splits["train"].paths:
            raise UserError(
                f"no frame in {real_path(folder)}: {'; '.join(self.left_out.lines())}; frames are "
                "numbered image files"
            )
        self.films: dict[Path, str] = {}  # frame -> its film
        gaps: list[tuple[int, str]] = []
        for split, files in splits.items():
            ordered = []
            for parent, paths in group_paths_by_folder(sorted(files.paths, key=frame_sort_key)):
                place = str(parent.relative_to(folder))
                for name, frames in self.group_folder_into_films(parent, paths).items():
                    film = "/".join(part for part in (place, name) if part not in ("", "."))
                    self.films |= dict.fromkeys(frames, film)
                    ordered += frames
                    gaps.append(count_frame_gaps_with_example(frames))
            splits[split] = ImageFiles(ordered)
        self.add_film_notes(splits, gaps)
        return splits

    def leave_out_gif_files(self, paths: list[Path], folder: Path) -> list[Path]:
        """Return the frames without GIF files, which are counted."""
        for path in paths:
            if path.suffix.lower() == ".gif":
                name = str(path.relative_to(folder))
                self.left_out.add("GIF files, which are videos and not frames", name)
        return [path for path in paths if path.suffix.lower() != ".gif"]

    def group_folder_into_films(self, folder: Path, paths: list[Path]) -> dict[str, list[Path]]:
        """Return name -> frames of the videos in one folder; note it if file names say them."""
        if self.folder_rules == 1:
            return {"": paths}
        found = group_frames_into_films(folder, paths)
        if found.by_name:
            names = [f"{name}*" if "*" not in name else name for name in found.films]
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            self.names_note = make_printable(
                f"the file names in {folder.name}/ say {len(names):,} videos ({shown}), and their "
                "last number counts the frames"
            )
            self.notes.append(self.names_note)
        return found.films

    def add_film_notes(self, splits: dict[str, ImageFiles], gaps: list[tuple[int, str]]) -> None:
        """Note the number of videos and of gaps in the numbers of their frames."""
        if self.folder_rules == 1:
            return
        num_frames = sum(len(files.paths) for files in splits.values())
        num_films = len(set(self.films.values()))
        self.facts["videos"] = num_films
        videos = "video" if num_films == 1 else "videos"
        self.notes.append(f"{num_films:,} {videos} of {num_frames:,} frames in total")
        if total := sum(count for count, _ in gaps):
            example = next(example for count, example in gaps if count)
            self.notes.append(
                make_printable(
                    f"{total:,} gaps in the numbers of frames, which are jumps, as {example}"
                )
            )

    def add_missing_splits(self, splits: dict[str, ImageFiles]) -> dict[str, ImageFiles]:
        videos = {split: self.group_frames_by_film(files.paths) for split, files in splits.items()}
        self.full_lengths = {
            self.films[video[0]]: len(video) for films in videos.values() for video in films
        }
        fractions = {"test": self.test, "validation": self.validation}
        for split in [split for split in fractions if split not in videos]:
            complete = self.group_frames_by_film(splits["train"].paths)
            sizes = [round(fractions[split] * len(video)) for video in complete]
            pairs = list(zip(videos["train"], sizes, strict=True))
            videos[split] = [video[len(video) - size :] for video, size in pairs]
            videos["train"] = [video[: len(video) - size] for video, size in pairs]
        self.video_lengths = {split: [len(video) for video in videos[split]] for split in SPLITS}
        return {
            split: ImageFiles([path for video in videos[split] for path in video])
            for split in SPLITS
        }

    def group_frames_by_film(self, paths: list[Path]) -> list[list[Path]]:
        """Return frames in lists, one per video."""
        return [list(group) for _, group in groupby(paths, key=lambda path: self.films[path])]

    def render_frames(self, items: Tensor, store: Tensor) -> Tensor:
        return store[items[:, None] + torch.arange(self.num_frames, device=items.device)]


def group_paths_by_folder(paths: list[Path]) -> list[tuple[Path, list[Path]]]:
    """Return sorted paths by the folder that they are in."""
    return [(parent, list(group)) for parent, group in groupby(paths, key=lambda p: p.parent)]
