"""Images with captions: made from class names by templates, or read from a file beside them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import Dataset
from genlab.data.image_files import Found
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError
from genlab.spec import Batch, Count, Positive, Spec

METADATA = "metadata.jsonl"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text_spec(length: int) -> Spec:
    """Return the Spec of captions as bytes, `length` of them, filled up with zeros."""
    return Spec((length,), kind="tokens", levels=0, vocab=256)


def table(captions: list[str], length: int) -> Tensor:
    """Return captions as bytes (N, length) int64, filled up with zeros.

    Raises:
        UserError: one is longer.
    """
    found = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in zip(found, captions, strict=True):
        data = caption.encode()
        if len(data) > length:
            size = len(data)
            raise UserError(
                f"a caption has {size} bytes, and dataset.length={length}: {caption!r}; set dataset.length={size}"
            )
        row[: len(data)] = torch.tensor(list(data), dtype=torch.int64)
    return found


def nonsense(n: int, longest: int, generator: torch.Generator) -> list[str]:
    """Return n templates of at most `longest` bytes: {} among one to eight words of one to eight letters that mean nothing."""
    draw = lambda low, high: int(torch.randint(low, high + 1, (), generator=generator))  # noqa: E731
    found = []
    for _ in range(n):
        before, after = [], []
        for _ in range(draw(1, 8)):
            word = "".join(LETTERS[draw(0, 25)] for _ in range(draw(1, 8)))
            if len(" ".join([*before, word, "{}", *after])) <= longest:
                (after if draw(0, 3) == 0 else before).append(
                    word
                )  # the name comes late, as it does in English
        found.append(" ".join([*before, "{}", *after]))
    return found


@dataclass(kw_only=True, eq=False)
class Captions(Dataset):
    """The images of another set with captions made from the names of their classes: `cond` (B, length) bytes.

    A training item gets any of the templates, drawn anew each time; in a pass in order each item keeps its own.
    Told a few phrasings only, an encoder learns them by heart and is lost by the next. Words that mean nothing, in many
    numbers, lengths and places, leave it only the name to hold on to.

    Args:
        of: the set of images.
        names: of its classes, in their order.
        templates: captions with {} where the name goes.
        unseen: templates that no training item gets, by which a model can be asked for what it was never told.
        made_up: templates of meaningless words, of which every other training item gets one; 0: none does.
        length: bytes of a caption at most.
    """

    of: Any
    names: list[str]
    templates: list[str]
    unseen: list[str]
    made_up: Count = 0
    length: Positive = 64

    def __post_init__(self) -> None:
        spec = self.of.spec
        if spec.kind != "image" or len(self.names) != spec.classes:
            has = f"{self.of.name} has {spec.classes} classes of {spec.kind}"
            raise UserError(f"dataset.names has {len(self.names)} names, and {has}")
        if not self.templates or any(
            "{}" not in template for template in (*self.templates, *self.unseen)
        ):
            raise UserError(
                "dataset.templates needs at least one caption with {} where the name of the class goes"
            )
        self.name = f"{self.of.name} with captions"
        self.workers = self.of.workers
        longest = self.length - max(len(name.encode()) for name in self.names) + len("{}")
        made_up = nonsense(
            self.made_up, longest, torch.Generator().manual_seed(0)
        )  # the same in each run, as the others are
        # (templates + made_up, classes, length)
        self.rows = torch.stack(
            [self.captions(template) for template in (*self.templates, *made_up)]
        )
        told = replace(spec, source=text_spec(self.length), task="text2image")
        self.hold(told, self.of.splits, self.of.prepare, missing=self.of.missing)

    def captions(self, template: str) -> Tensor:
        """Return the caption of each class (classes, length) as bytes."""
        return table([template.replace("{}", name) for name in self.names], self.length)

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        batch = self.of.made(x, y, generator, augment=augment)
        which = torch.randint(len(self.templates), (len(x),), device=x.device, generator=generator)
        if augment and self.made_up:
            other = torch.randint(
                len(self.templates), len(self.rows), (len(x),), device=x.device, generator=generator
            )
            coin = torch.rand(len(x), device=x.device, generator=generator) < 0.5
            which = torch.where(coin, other, which)
        return Batch(batch.x, batch.y, self.rows.to(x.device)[which, batch.y])

    def shown(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        """Return the images that `take` returns as bytes uint8 (n, C, H, W)."""
        return self.of.shown(split, n, seed=seed)

    def report(self) -> list[str]:
        return self.of.report()


@dataclass(kw_only=True, eq=False)
class CaptionedFolder(ImageFolder):
    """The images of a folder with the captions of its metadata.jsonl: a line {"file_name": …, "text": …} for each image.

    Args:
        length: bytes of a caption at most; longer ones are cut.
    """

    length: Positive = 128
    name = "captioned_folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sources = [*self.sources, Path(self.path).expanduser() / METADATA]
        self.spec = replace(self.spec, classes=0, source=text_spec(self.length), task="text2image")

    def listed(self, folder: Path) -> dict[str, Found]:
        """Return the images that have a caption, the number of which takes the place of a class."""
        file = folder / METADATA
        if not file.exists():
            raise UserError(
                f'{file} is missing: a line {{"file_name": …, "text": …}} for each image'
            )
        paths, captions = [], []
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                name, text = Path(entry["file_name"]), entry["text"].encode()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(
                    f'{file}, line {number}: {line[:80]!r} is no {{"file_name": …, "text": …}}'
                ) from error
            if name.is_absolute() or ".." in name.parts:
                raise UserError(
                    f"{file}, line {number}: {str(name)!r} is no file in {folder}, where an image must be"
                )
            if not (folder / name).is_file():
                raise UserError(f"{file}, line {number}: there is no file {folder / name}")
            paths.append(folder / name)
            captions.append(text[: self.length].decode(errors="ignore"))
        if not paths:
            raise UserError(f"{file} has no line")
        self.rows = table(captions, self.length)
        return {"train": Found(paths, torch.arange(len(paths)))}

    def made(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        batch = super().made(x, y, generator, augment=augment)
        return Batch(batch.x, None, self.rows.to(x.device)[y])
