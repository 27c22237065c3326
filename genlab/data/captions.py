"""Images with captions, made from class names by templates or read from a file."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.data.dataset import Dataset
from genlab.data.folder_layout import split_from_folder_name
from genlab.data.image_files import ImageFiles, list_images
from genlab.data.image_folder import ImageFolder
from genlab.data.summary import DataSummary, LeftOut
from genlab.data.text_files import guess_encoding
from genlab.errors import UserError
from genlab.spec import Batch, Count, DataSpec, Positive
from genlab.untrusted.files import is_inside_folder, read_bytes, real_path

METADATA_FILE = "metadata.jsonl"
CAPTION_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".caption")
MAX_KEYS_SHOWN = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def caption_spec(length: int) -> DataSpec:
    """Return the DataSpec of captions as bytes, padded with zeros to `length`."""
    return DataSpec((length,), kind="tokens", levels=0, vocab=256)


def encode_captions_as_bytes(captions: list[str], length: int) -> Tensor:
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


def random_nonsense_templates(n: int, max_bytes: int, generator: torch.Generator) -> list[str]:
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
            names = f"; set dataset.class_names=[{','.join(spec.class_names)}]"
            raise UserError(
                f"dataset.class_names has {len(self.class_names)} names, but {self.base.name} has "
                f"{spec.num_classes} classes of {spec.kind}{names if spec.class_names else ''}"
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
        nonsense = random_nonsense_templates(
            self.nonsense_templates, self.length - longest_name + len("{}"), generator
        )
        # (templates + nonsense templates, classes, length)
        self.rows = torch.stack(
            [self.encode_class_captions(template) for template in (*self.templates, *nonsense)]
        )
        spec = replace(spec, source=caption_spec(self.length), task="text2image")
        self.set_splits(spec, self.base.splits, self.base.preprocess, hints=self.base.hints)

    def caption_templates(self, *, heldout: bool = False) -> list[str]:
        return self.heldout_templates if heldout else self.templates

    def class_named_in(self, caption: str) -> int | None:
        named = [
            k
            for k, name in enumerate(self.class_names)
            if re.search(rf"\b{re.escape(name)}\b", caption, re.IGNORECASE)
        ]
        return named[0] if len(named) == 1 else None

    def class_captions(self) -> list[str]:
        return [self.templates[0].replace("{}", name) for name in self.class_names]

    def encode_class_captions(self, template: str) -> Tensor:
        captions = [template.replace("{}", name) for name in self.class_names]
        return encode_captions_as_bytes(captions, self.length)

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

    def head_as_uint8_images(self, split: str, n: int | None = None, *, seed: int = 0) -> Batch:
        return self.base.head_as_uint8_images(split, n, seed=seed)

    def words_for_draws(self) -> list[str]:
        words: list[str] = self.base.words_for_draws()
        return words

    def describe(self) -> DataSummary:
        return replace(self.base.describe(), name=self.name, shown=self.spec.describe())


@dataclass(kw_only=True, eq=False)
class CaptionedFolder(ImageFolder):
    """The images of a folder with the captions of its metadata.jsonl.

    The file has one line {"file_name": …, "text": …} per caption. It is in the folder, or one each
    is in train/, val/ and test/.

    Args:
        length: bytes per caption; longer ones are truncated.
        strict: also whether a line without an image is an error; otherwise it is counted.
    """

    length: Positive = 128
    name = "captioned_folder"
    has_class_folders = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source_files = [*self.source_files, *self.metadata_files]
        self.spec = replace(
            self.spec,
            num_classes=0,
            class_names=(),
            source=caption_spec(self.length),
            task="text2image",
        )

    def list_images_by_split(self, folder: Path) -> dict[str, ImageFiles]:
        """Return the images that have a caption, with the caption's number as label.

        Raises:
            UserError: metadata.jsonl is missing, or a line of it is malformed.
        """
        files = find_metadata_files(folder)
        self.named: set[Path] = set()  # images of any line
        self.metadata_files = list(files.values())
        captions: list[str] = []
        splits = {}
        for split, file in files.items():
            entries = self.read_metadata(file)
            if not entries:
                found = "; ".join(self.left_out.lines())
                raise UserError(
                    f"{file} does not have a caption of an image{found and f' ({found})'}"
                )
            for part, chosen in self.split_entries_by_folder(file.parent, split, entries).items():
                labels = torch.arange(len(captions), len(captions) + len(chosen))
                splits[part] = ImageFiles([path for path, _ in chosen], labels)
                captions += [caption for _, caption in chosen]
        self.rows = encode_captions_as_bytes(
            [self.truncate_caption(caption) for caption in captions], self.length
        )
        self.add_caption_notes(
            captions, [path for files in splits.values() for path in files.paths]
        )
        if self.folder_rules > 1:
            self.count_images_without_caption(folder)
        return splits

    def read_metadata(self, file: Path) -> list[tuple[Path, str]]:
        """Return the image and the caption of each line of a metadata file that has both.

        Raises:
            UserError: a line is malformed, or `strict` and its image is missing.
        """
        entries = []
        seen: set[tuple[Path, str]] = set()
        # not splitlines(), which also splits at characters that a caption may contain
        for number, line in enumerate(read_utf8_text(file).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            path, caption = parse_metadata_line(file.parent, line, where)
            self.named.add(real_path(path))
            if not path.is_file():
                if self.strict or self.folder_rules == 1:
                    raise UserError(f"{where}: no file {path}")
                self.left_out.add("lines with no file of this name", f"line {number}: {path.name}")
            elif not caption.strip() and self.folder_rules > 1:
                self.left_out.add("empty captions", f"line {number}: {path.name}")
            elif (path, caption) in seen and self.folder_rules > 1:
                self.left_out.add("repeated lines", f"line {number}: {path.name}")
            else:
                seen.add((path, caption))
                entries.append((path, caption))
        return entries

    def split_entries_by_folder(
        self, folder: Path, split: str, entries: list[tuple[Path, str]]
    ) -> dict[str, list[tuple[Path, str]]]:
        """Return entries by split: that of the folders that all of them name, as train/ and test/.

        Args:
            split: that of all entries if their folders do not say it.
        """
        parts: dict[str, list[tuple[Path, str]]] = {}
        for entry in entries:
            name = entry[0].relative_to(folder).parts[0]
            part = split_from_folder_name(name) if entry[0].parent != folder else None
            parts.setdefault(part or "", []).append(entry)
        is_clear = split == "train" and "train" in parts and "" not in parts and len(parts) > 1
        if not is_clear or self.split_folders is False or self.folder_rules == 1:
            return {split: entries}
        self.notes.append(f"the folders that {METADATA_FILE} names are the splits")
        return parts

    def truncate_caption(self, caption: str) -> str:
        """Return the characters of a caption that fit into `length` bytes."""
        return caption.encode()[: self.length].decode(errors="ignore")

    def add_caption_notes(self, captions: list[str], paths: list[Path]) -> None:
        """Note captions that are truncated, and images with several captions."""
        sizes = [len(caption.encode()) for caption in captions]
        if too_long := sum(size > self.length for size in sizes):
            self.notes.append(
                f"{too_long:,} of {len(captions):,} captions are truncated to "
                f"dataset.length={self.length} bytes; the longest has {max(sizes):,}"
            )
        if (repeated := len(paths) - len(set(paths))) and self.folder_rules > 1:
            self.notes.append(
                f"{repeated:,} captions are of images that have another one too; each caption is "
                "an item, so an image may be in several splits"
            )

    def count_images_without_caption(self, folder: Path) -> None:
        """Count the images that the metadata does not name, and the other files."""
        others = LeftOut()
        for path in list_images(folder, others):
            if real_path(path) not in self.named:
                self.left_out.add("images without a caption", str(path.relative_to(folder)))
        suffix = f"unsupported suffix {Path(METADATA_FILE).suffix}"
        others.counts[suffix] -= len(self.metadata_files)
        for reason, count in others.counts.items():
            names = [name for name in others.names[reason] if Path(name).name != METADATA_FILE]
            for name in names[:count]:
                self.left_out.add(reason, name)
            if count > len(names):
                self.left_out.add(reason, count=count - len(names))

    def make_batch(
        self, x: Tensor, y: Tensor | None, generator: torch.Generator, *, augment: bool
    ) -> Batch:
        batch = super().make_batch(x, y, generator, augment=augment)
        return Batch(batch.x, None, self.rows.to(x.device)[y])


def find_metadata_files(folder: Path) -> dict[str, Path]:
    """Return the metadata file of a folder as that of train, or those of its split folders.

    Raises:
        UserError: there is none; names the captions in another format, if there are.
    """
    if (folder / METADATA_FILE).is_file():
        return {"train": folder / METADATA_FILE}
    subs = sorted(sub for sub in folder.iterdir() if (sub / METADATA_FILE).is_file())
    files = {
        split: sub / METADATA_FILE for sub in subs if (split := split_from_folder_name(sub.name))
    }
    if "train" in files:
        return files
    others = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in CAPTION_SUFFIXES]
    found = ""
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        found = f"; {others[0].name}{more} has to be converted to it"
    raise UserError(
        f'{folder / METADATA_FILE} is missing: it needs a line {{"file_name": …, "text": …}} per '
        f"image{found}"
    )


def read_utf8_text(file: Path) -> str:
    """Return the text of a file, without a byte-order mark.

    Raises:
        UserError: it is not UTF-8.
    """
    data = read_bytes(file)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        likely = guess_encoding(data, "utf-8")
        hint = f"; it is likely {likely}" if likely not in (None, "utf-8") else ""
        raise UserError(
            f"{file}, line {line}: byte 0x{data[error.start]:02X} is not UTF-8{hint}; save the "
            "file as UTF-8"
        ) from error


def parse_metadata_line(folder: Path, line: str, where: str) -> tuple[Path, str]:
    """Return the image and the caption of a line of a metadata file in `folder`.

    Args:
        where: the file and the line, for messages.

    Raises:
        UserError: the line is malformed, or its image is outside of the folder.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    expected = 'is not {"file_name": …, "text": …}'
    # the file may be a link to a private one, whose content must not be shown
    shown = repr(line[:80]) if is_inside_folder(where.partition(", line ")[0], folder) else "it"
    if not isinstance(entry, dict):
        hint = "; a list in brackets has to be split into lines" if line.lstrip()[0] == "[" else ""
        raise UserError(f"{where}: {shown} {expected}{hint}")
    if "text" in entry and entry["text"] is None:
        entry["text"] = ""
    for key in ("file_name", "text"):
        if not isinstance(entry.get(key), str):
            kind = f'"{key}" is not a string' if key in entry else f'no "{key}"'
            keys = ", ".join(f'"{name}"' for name in list(entry)[:MAX_KEYS_SHOWN])
            raise UserError(f"{where}: {shown} {expected}: {kind}; it has {keys or 'no key'}")
    try:
        if "\0" in entry["file_name"]:
            raise ValueError("a zero byte in a name")
        name = Path(entry["file_name"])
        if "\\" in entry["file_name"] and not (folder / name).is_file():
            name = Path(entry["file_name"].replace("\\", "/"))  # written on Windows
        is_outside = name.is_absolute() or ".." in name.parts
        entry["text"].encode()
        (folder / name).is_file()
    except (ValueError, OSError) as error:  # a zero byte, half a character, a name too long
        raise UserError(f"{where}: {shown} {expected} ({error})") from error
    if is_outside:
        raise UserError(f"{where}: {str(name)!r} is not a file in {folder}, where an image must be")
    return folder / name, entry["text"]
