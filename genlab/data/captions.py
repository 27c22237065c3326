"""Images with captions, made from class names by templates or read from a file."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import Dataset
from genlab.data.image_files import ImageFiles
from genlab.data.image_folder import ImageFolder
from genlab.errors import UserError
from genlab.spec import Batch, Count, DataSpec, Positive

METADATA_FILE = "metadata.jsonl"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def caption_spec(length: int) -> DataSpec:
    """Return the DataSpec of captions as bytes, padded with zeros to `length`."""
    return DataSpec((length,), kind="tokens", levels=0, vocab=256)


def encode_captions(captions: list[str], length: int) -> Tensor:
    """Return captions as bytes (N, length) int64, padded with zeros.

    Raises:
        UserError: a caption is longer.
    """
    rows = torch.zeros(len(captions), length, dtype=torch.int64)
    for row, caption in zip(rows, captions, strict=True):
        data = caption.encode()
        if len(data) > length:
            size = len(data)
            raise UserError(
                f"a caption has {size} bytes, but dataset.length={length}: {caption!r}; "
                f"set dataset.length={size}"
            )
        row[: len(data)] = torch.tensor(list(data), dtype=torch.int64)
    return rows


def random_templates(n: int, max_bytes: int, generator: torch.Generator) -> list[str]:
    """Return n templates of up to `max_bytes` bytes: {} among random words.

    A template has one to eight words of one to eight letters.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    templates = []
    for _ in range(n):
        before: list[str] = []
        after: list[str] = []
        for _ in range(draw(1, 8)):
            word = "".join(LETTERS[draw(0, 25)] for _ in range(draw(1, 8)))
            if len(" ".join([*before, word, "{}", *after])) <= max_bytes:
                # the name comes late, as it does in English
                (after if draw(0, 3) == 0 else before).append(word)
        templates.append(" ".join([*before, "{}", *after]))
    return templates


@dataclass(kw_only=True, eq=False)
class Captions(Dataset):
    """The images of another dataset with captions made from class names.

    Captions are `cond` (B, length), as bytes. A training item draws one of the templates each time;
    in an ordered pass each item keeps its own. An encoder trained with a few phrasings memorizes
    them and fails on the next one. Templates of random words, in many numbers, lengths and
    positions, leave it only the name to rely on.

    Args:
        base: the image dataset.
        class_names: names of its classes, in their order.
        templates: captions with {} where the name goes.
        heldout_templates: templates that no training item has, to test the model on new phrasings.
        nonsense_templates: number of templates of random words; every other training item draws one
            of them. 0 disables them.
        length: largest number of bytes in a caption.
    """

    base: Any
    class_names: list[str]
    templates: list[str]
    heldout_templates: list[str]
    nonsense_templates: Count = 0
    length: Positive = 64

    def __post_init__(self) -> None:
        spec = self.base.spec
        if spec.kind != "image" or len(self.class_names) != spec.num_classes:
            raise UserError(
                f"dataset.class_names has {len(self.class_names)} names, but {self.base.name} has "
                f"{spec.num_classes} classes of {spec.kind}"
            )
        if not self.templates or any(
            "{}" not in template for template in (*self.templates, *self.heldout_templates)
        ):
            raise UserError(
                "dataset.templates needs at least one caption with {} where the class name goes"
            )
        self.name = f"{self.base.name} with captions"
        self.workers = self.base.workers
        self.source_files = self.base.source_files
        longest_name = max(len(name.encode()) for name in self.class_names)
        # the same templates in each run, as the others are
        generator = torch.Generator().manual_seed(0)
        nonsense = random_templates(
            self.nonsense_templates, self.length - longest_name + len("{}"), generator
        )
        # (templates + nonsense templates, classes, length)
        self.rows = torch.stack(
            [self.captions(template) for template in (*self.templates, *nonsense)]
        )
        spec = replace(spec, source=caption_spec(self.length), task="text2image")
        self.set_splits(spec, self.base.splits, self.base.preprocess, hints=self.base.hints)

    def caption_templates(self, *, heldout: bool = False) -> list[str]:
        return self.heldout_templates if heldout else self.templates

    def captions(self, template: str) -> Tensor:
        captions = [template.replace("{}", name) for name in self.class_names]
        return encode_captions(captions, self.length)

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        batch = self.base.make_batch(x, y, generator, augment=augment)
        which = torch.randint(len(self.templates), (len(x),), device=x.device, generator=generator)
        if augment and self.nonsense_templates:
            nonsense = torch.randint(
                len(self.templates), len(self.rows), (len(x),), device=x.device, generator=generator
            )
            coin = torch.rand(len(x), device=x.device, generator=generator) < 0.5
            which = torch.where(coin, nonsense, which)
        return Batch(batch.x, batch.y, self.rows.to(x.device)[which, batch.y])

    def head_bytes(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        return self.base.head_bytes(split, n, seed=seed)

    def report(self) -> list[str]:
        return self.base.report()


@dataclass(kw_only=True, eq=False)
class CaptionedFolder(ImageFolder):
    """The images of a folder with the captions of its metadata.jsonl.

    The file has one line {"file_name": …, "text": …} per image.

    Args:
        length: bytes per caption; longer ones are truncated.
    """

    length: Positive = 128
    name = "captioned_folder"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source_files = [*self.source_files, Path(self.path or "").expanduser() / METADATA_FILE]
        self.spec = replace(
            self.spec, num_classes=0, source=caption_spec(self.length), task="text2image"
        )

    def list_splits(self, folder: Path) -> dict[str, ImageFiles]:
        """Return the images that have a caption, with the caption's number as label."""
        file = folder / METADATA_FILE
        if not file.exists():
            raise UserError(
                f'{file} is missing: it needs a line {{"file_name": …, "text": …}} per image'
            )
        paths, captions = [], []
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if line.strip():
                path, caption = self.read_line(folder, line, f"{file}, line {number}")
                paths.append(path)
                captions.append(caption)
        if not paths:
            raise UserError(f"{file} is empty")
        self.rows = encode_captions(captions, self.length)
        return {"train": ImageFiles(paths, torch.arange(len(paths)))}

    def read_line(self, folder: Path, line: str, where: str) -> tuple[Path, str]:
        """Return the image and the truncated caption of a line of the metadata file.

        Raises:
            UserError: the line is malformed, or its image is missing or outside of the folder.
        """
        try:
            entry = json.loads(line)
            name, text = Path(entry["file_name"]), entry["text"].encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f'{where}: {line[:80]!r} is not {{"file_name": …, "text": …}}'
            ) from error
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{where}: {str(name)!r} is not a file in {folder}, where an image must be"
            )
        if not (folder / name).is_file():
            raise UserError(f"{where}: no file {folder / name}")
        return folder / name, text[: self.length].decode(errors="ignore")

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        batch = super().make_batch(x, y, generator, augment=augment)
        return Batch(batch.x, None, self.rows.to(x.device)[y])
