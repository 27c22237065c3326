"""Patches: squares of one size cut out of images, each at its own size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.image_decoding import (
    ImageDecoder,
    ImageHeader,
    image_to_uint8_tensor,
    to_8bit_gray_or_rgb,
)
from genlab.data.image_files import StreamedImages, UnreadableImages
from genlab.data.shuffling import ShardIndex
from genlab.seeding import derive_seed

POSITION_STREAM = 2  # mixed into the seed of the positions of patches


def random_crop(
    x: Tensor, height: int, generator: torch.Generator | None, width: int | None = None
) -> Tensor:
    """Return a patch (B, …, height, width) of each image x (B, …, H, W).

    Args:
        generator: draws the position of each patch; None takes the middle.
        width: None gives square patches.
    """
    width = width or height
    free = torch.tensor([x.shape[-2] - height, x.shape[-1] - width], device=x.device)
    if generator is None:
        top, left = (free // 2).tolist()
        return x[..., top : top + height, left : left + width]
    u = torch.rand(len(x), 2, device=x.device, generator=generator)
    corner = (u * (free + 1)).long()  # (B, 2)
    # (B, height, 1), (B, 1, width)
    rows = corner[:, 0, None, None] + torch.arange(height, device=x.device)[:, None]
    columns = corner[:, 1, None, None] + torch.arange(width, device=x.device)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.movedim((-2, -1), (1, 2))[batch, rows, columns].movedim((1, 2), (-2, -1))


class PatchImages(StreamedImages):
    """The image files of a split, of which an item is a square patch of one image.

    Args:
        size: side of the patches.
        seed: of the positions, which also depend on the batch and the shard; None takes the middle
            of each image.
    """

    def __init__(
        self,
        paths: list[Path],
        decoder: ImageDecoder,
        unreadable: UnreadableImages,
        *,
        size: int,
        seed: int | None = None,
    ) -> None:
        super().__init__(paths, decoder, unreadable)
        self.size = size
        self.seed = seed
        self.stored: dict[Path, Tensor] = {}  # images (C, H, W) that are kept decoded

    def copy_with_paths_and_seed(self, paths: list[Path], seed: int | None) -> PatchImages:
        """Return the patches of some of the files, at positions by another seed."""
        other = PatchImages(paths, self.decoder, self.unreadable, size=self.size, seed=seed)
        other.stored = self.stored
        return other

    def subset(self, index: Tensor) -> PatchImages:
        numbers = index.tolist()
        subset = self.copy_with_paths_and_seed([self.paths[i] for i in numbers], self.seed)
        subset.stamps = None if self.stamps is None else [self.stamps[i] for i in numbers]
        return subset

    def decode_all_into_memory(self) -> Tensor:
        """Decode the images into memory; return the indices (N,) of the readable ones."""
        index: list[int] = []
        for i, image in self.decode_each_readable():
            self.stored[self.paths[i]] = image
            index.append(i)
        return torch.tensor(index)

    def decode_or_failure_reason(self, i: int) -> Tensor | str:
        image = self.stored.get(self.paths[i])
        return super().decode_or_failure_reason(i) if image is None else image

    def stack_images(self, images: list[Tensor], batch: int, shard: int) -> Tensor:
        """Return the patches uint8 (B, C, size, size) of images (C, H, W) of any size."""
        generator = None
        if self.seed is not None:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, batch, shard, POSITION_STREAM))
        return torch.cat([random_crop(image[None], self.size, generator) for image in images])

    def stream_shards(
        self,
        shards: Iterator[ShardIndex],
        *,
        workers: int,
        pin_memory: bool,
        seed: int | None = None,
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Yield the patches of each shard; see `StreamedImages.stream_shards`."""
        files = self.copy_with_paths_and_seed(self.paths, seed)
        files.stamps = self.stamps
        yield from super(PatchImages, files).stream_shards(
            shards, workers=0 if self.stored else workers, pin_memory=pin_memory
        )


class OwnSizeDecoder(ImageDecoder):
    """Decodes a file to uint8 (channels, H, W) in its own size."""

    def to_pixels(self, image: Any, depth: Any = "8-bit") -> Tensor:
        """Return the pixels of an opened image that is already upright."""
        return image_to_uint8_tensor(to_8bit_gray_or_rgb(image, self.channels, depth, self.ranges))


def describe_sizes(headers: dict[Path, ImageHeader]) -> str:
    """Return the range of sizes of images, as "12 images of 48×64 to 800×600"."""
    by_area = sorted(headers.values(), key=lambda header: header.width * header.height)
    sizes = [f"{header.width}×{header.height}" for header in (by_area[0], by_area[-1])]
    return f"{len(headers):,} images of {' to '.join(dict.fromkeys(sizes))}"


def suggest_patch_size(headers: dict[Path, ImageHeader]) -> int:
    """Return a side of patches, up to 64 and a multiple of 8, that fits into most images."""
    sides = sorted(min(header.width, header.height) for header in headers.values())
    typical = min(64, sides[len(sides) // 10])
    return typical // 8 * 8 or typical
