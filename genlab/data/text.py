"""Text as tokens: the characters or bytes of files, in windows of one length."""

import codecs
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.request import urlopen

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from genlab.data.dataset import Dataset, Split
from genlab.data.shuffling import ShardIndex
from genlab.data.text_files import (
    TextReader,
    UnreadableTextError,
    describe_binary_data,
    describe_decomposed_accents,
    find_text_files,
    format_suffix_counts,
    group_files_by_split,
)
from genlab.data.torchvision_sets import ensure_downloaded
from genlab.errors import UserError, make_printable
from genlab.spec import DataSpec, Fraction
from genlab.untrusted.files import read_bytes

DOWNLOAD_TIMEOUT_S = 60
MAX_JSON_LINE = 1 << 16  # characters of the first line that are tried as JSON


@dataclass
class TextWindows(Split):
    """A text x (N,), whose items are windows of `length` tokens, one every `stride` tokens."""

    length: int = 1
    stride: int = 1

    def __len__(self) -> int:
        return max(0, (len(self.x) - self.length) // self.stride + 1)


@dataclass(kw_only=True, eq=False)
class Text(Dataset):
    """A text whose first part is for training, then validation, then test.

    A training item is a window that starts at any token; batches take them in a shuffled order.
    Held-out windows follow each other and overlap by one token, so that each token except the first
    is predicted once. The rest at the end that does not fill a window is left out.

    If a folder names splits, as train/ or wiki.valid.txt, these are the splits.

    Args:
        path: a file, or a folder whose text files are joined in the order of their names. None: the
            help topics of Python's language reference, which ship with Python (0.5 MB).
        unit: a token is one of the characters of the text, or a byte of the files.
        encoding: how characters are stored in the files; a name of Python's codecs.
        normalize_newlines: read CR LF and CR as LF, and drop byte-order marks; False keeps these
            as characters.
        length: tokens in an item.
        validation: fraction of the text held out.
        test: fraction held out after that; None uses the validation text as test text too.
    """

    path: str | None = None
    unit: Literal["characters", "bytes"] = "characters"
    encoding: str = "utf-8"
    normalize_newlines: bool = True
    length: Annotated[int, Ge(2)] = 65
    validation: Fraction = 0.1
    test: Fraction | None = None
    name = "text"

    def __post_init__(self) -> None:
        if self.unit == "bytes" and self.encoding != "utf-8":
            raise UserError(
                f"dataset.encoding={self.encoding} is for dataset.unit=characters; bytes are read "
                "as they are"
            )
        self.reader = TextReader(self.encoding, self.normalize_newlines)
        parts = self.read_text_by_split()
        if self.unit == "bytes":
            tokens, spec = tokenize_bytes(b"".join(parts.values()), self.length)
        else:
            text = "".join(parts.values())
            self.add_json_note(text)
            tokens, spec = tokenize_characters(text, self.length)
            self.facts["symbols"] = spec.symbols
        self.facts["tokens"] = len(tokens)
        self.set_text_splits(tokens, spec, {name: len(part) for name, part in parts.items()})
        self.add_summary_notes(tokens, "" if self.unit == "bytes" else text)

    def set_text_splits(self, tokens: Tensor, spec: DataSpec, sizes: dict[str, int]) -> None:
        """Set the splits of the tokens of parts with these sizes, see `read_parts`.

        Raises:
            UserError: the training part is shorter than a window.
        """
        texts = dict(zip(sizes, tokens.split(list(sizes.values())), strict=True))
        train = texts.pop("train")
        fractions = {
            "validation": 0.0 if "validation" in texts else self.validation,
            "test": 0.0 if "test" in texts else self.test or 0.0,
        }
        ends = [
            int(len(train) * (1 - fractions["validation"] - fractions["test"])),
            int(len(train) * (1 - fractions["test"])),
        ]
        if ends[0] < self.length:
            raise UserError(
                f"{self.name} has {max(0, ends[0]):,} {self.unit} to train on, but a window has "
                f"{self.length}; set a smaller dataset.length, dataset.validation or dataset.test"
            )
        train, validation, test = train.tensor_split(ends)
        texts = {"validation": validation, "test": test} | texts
        if not len(texts["test"]) and self.test is None:
            texts["test"] = texts["validation"]
            if len(texts["test"]):
                self.notes.append("the validation text is the test text too (dataset.test=null)")
        stride = self.length - 1
        splits: dict[str, Split] = {"train": TextWindows(train, length=self.length)}
        for split in ("validation", "test"):
            splits[split] = TextWindows(texts[split], length=self.length, stride=stride)
        test_fraction = "null" if self.test is None else f"{self.test:g}"
        hint = (
            f"dataset.validation={self.validation:g} and dataset.test={test_fraction} "
            "leave less than dataset.length tokens there"
        )
        self.set_splits(spec, splits, hints=dict.fromkeys(("validation", "test"), hint))

    def add_summary_notes(self, tokens: Tensor, text: str) -> None:
        """Add what was read and what was changed to the notes of the summary."""
        size = f"{len(tokens):,} {self.unit}"
        if self.unit == "characters":
            size += f", {self.spec.vocab} different"
        self.notes.insert(0, f"{size}; {self.length} in an item")
        self.notes.extend(self.reader.change_notes())
        if accents := describe_decomposed_accents(text):
            self.notes.append(accents)

    def add_json_note(self, text: str) -> None:
        """Note that a text is JSON, which is not decoded."""
        line = text.lstrip()[:MAX_JSON_LINE].split("\n", 1)[0].strip()
        try:
            is_json = isinstance(json.loads(line), dict | list)
        except (ValueError, RecursionError):
            is_json = False
        if is_json:
            self.notes.append(
                "the text is JSON, whose names, brackets and escapes, as \\u00e9, are characters "
                "as they are; to train on the texts in it, write them to a text file"
            )

    # --- reading ----------------------------------------------------------------------------------

    def read_text_by_split(self) -> dict[str, Any]:
        """Return the text, or the bytes, of each split that the files name; else all as train.

        Raises:
            UserError: the text at `path` is missing, or it is not in `encoding`.
        """
        if self.path is None:
            from pydoc_data.topics import topics

            text = "\n".join(topics[name] for name in sorted(topics))
            return {"train": text.encode() if self.unit == "bytes" else text}
        source = Path(self.path).expanduser()
        if source.is_dir():
            return self.read_folder_by_split(source)
        if not source.is_file():
            kind = "a broken link" if source.is_symlink() else "no such file or folder"
            raise UserError(f"dataset.path={self.path}: {kind} (looked for {source.absolute()})")
        return {"train": self.read_only_file(source)}

    def read_only_file(self, file: Path) -> Any:
        """Return the text, or the bytes, of the only file.

        Raises:
            UserError: it is empty, not a text, or not in `encoding`; says what to set.
        """
        self.source_files = [file]
        data = read_bytes(file)
        if not data.removeprefix(codecs.BOM_UTF8):
            raise UserError(f"dataset.path={file} is empty")
        if self.unit == "bytes":
            return self.keep_bytes_and_add_note(data)
        try:
            return self.reader.decode(data)
        except UnreadableTextError as error:
            raise UserError(
                f"dataset.path={file} {error.explain(data)}; or set dataset.unit=bytes to train on "
                "its bytes"
            ) from error

    def read_folder_by_split(self, folder: Path) -> dict[str, Any]:
        """Return the joined text, or bytes, of the files of a folder, by split.

        Raises:
            UserError: none of them is a text in `encoding`.
        """
        texts: dict[Path, Any] = {}
        failures: list[tuple[Path, UnreadableTextError]] = []
        for file in find_text_files(folder, self.left_out):
            try:
                texts[file] = self.read_folder_member(file, str(file.relative_to(folder)))
            except UnreadableTextError as error:
                failures.append((file, error))
        if not texts:
            remedy = f"; {failures[0][0]} {failures[0][1].explain(read_bytes(failures[0][0]))}"
            raise UserError(
                f"no text in {folder.absolute()} or in folders below it{remedy if failures else ''}"
            )
        self.source_files = list(texts)
        groups = group_files_by_split(self.source_files, folder)
        note = f"a folder of {len(texts):,} texts ({format_suffix_counts(self.source_files)})"
        if groups:
            note += "; their names give the splits"
        elif len(texts) > 1:
            first, last = (self.source_files[i].relative_to(folder) for i in (0, -1))
            note += f", joined in the order of their names: {first} … {last}"
        self.notes.append(make_printable(note))
        parts = {
            split: join_file_texts([texts[file] for file in files])
            for split, files in groups.items()
        }
        return parts or {"train": join_file_texts(list(texts.values()))}

    def read_folder_member(self, file: Path, name: str) -> Any:
        """Return the text, or the bytes, of a file of a folder; one that fails is counted.

        Raises:
            UnreadableTextError: it is not a text in `encoding`.
        """
        data = read_bytes(file)
        if self.unit == "bytes" and not describe_binary_data(data):
            return self.keep_bytes_and_add_note(data)
        try:
            return self.reader.decode(data)
        except UnreadableTextError as error:
            guess = (
                f" (likely {error.guess})" if error.guess and error.guess != self.encoding else ""
            )
            reason = error.kind if error.kind.startswith("not ") else "not a text"
            self.left_out.add(reason, f"{name}{guess}")
            raise

    def keep_bytes_and_add_note(self, data: bytes) -> bytes:
        """Return bytes as they are; note what would be changed in characters."""
        if data.startswith(codecs.BOM_UTF8) or b"\r" in data:
            note = "bytes are kept as they are, with byte-order marks and CR"
            if note not in self.notes:
                self.notes.append(note)
        return data

    def renumber_symbols(self, symbols: str) -> None:
        """Number the characters as a trained model does, which may know more of them.

        Raises:
            UserError: the text has a character that the model does not know.
        """
        own = self.spec.symbols
        if not own or own == symbols:
            return
        if unknown := "".join(sorted(set(own) - set(symbols))):
            raise UserError(
                f"{self.name} has the characters {unknown!r}, which the text that the model was "
                "trained on does not have"
            )
        spec = replace(self.spec, vocab=len(symbols), symbols=symbols)
        number = torch.tensor(spec.to_tokens(own), dtype=torch.int32)
        splits = {
            name: replace(part, x=number[part.x.long()]) for name, part in self.splits.items()
        }
        self.set_splits(spec, splits, hints=self.hints)

    def raw_items_and_labels(self, split: str) -> tuple[Tensor, None]:
        """Return the raw items, all windows (N, length) of the split, on the CPU."""
        windows = self._require_nonempty_split(split)
        assert isinstance(windows, TextWindows)
        return windows.x.unfold(0, windows.length, windows.stride), None

    def _raw_batches(
        self,
        split: str,
        shards: Iterator[ShardIndex],
        device: torch.device,
        *,
        seed: int | None = None,
    ) -> Iterator[tuple[int, int, Tensor, None]]:
        windows = self.splits[split]
        assert isinstance(windows, TextWindows)
        text, _ = self._split_tensors_on_device(split, device)
        offsets = torch.arange(windows.length, device=device)
        for k, shard, index in shards:
            yield k, shard, text[index[:, None] * windows.stride + offsets].long(), None


def tokenize_bytes(data: bytes, length: int) -> tuple[Tensor, DataSpec]:
    """Return the bytes as tokens uint8 (N,), and the DataSpec of windows of them."""
    tokens = torch.empty(0, dtype=torch.uint8)
    if data:
        tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return tokens, DataSpec(shape=(length,), kind="tokens", levels=0, vocab=256)


def tokenize_characters(text: str, length: int, symbols: str = "") -> tuple[Tensor, DataSpec]:
    """Return the characters' positions int32 (N,) among the symbols, and the DataSpec.

    Args:
        symbols: the symbols of a trained model; "" takes those of the text, sorted.

    Raises:
        UserError: the text has a character that is not among the symbols.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    number = np.full(sys.maxunicode + 1, -1, dtype=np.int32)
    is_used = np.zeros(sys.maxunicode + 1, dtype=bool)
    is_used[codes] = True
    symbols = symbols or "".join(map(chr, is_used.nonzero()[0]))
    number[[ord(symbol) for symbol in symbols]] = np.arange(len(symbols))
    spec = DataSpec(shape=(length,), kind="tokens", levels=0, vocab=len(symbols), symbols=symbols)
    if (number[is_used] < 0).any():
        spec.to_tokens(text)  # raises the error that names the characters
    return torch.from_numpy(number[codes]), spec


def join_file_texts(texts: list[Any]) -> Any:
    """Return texts, or bytes, as one, each from the start of a line."""
    newline, empty = (b"\n", b"") if isinstance(texts[0], bytes) else ("\n", "")
    lines = [text if text.endswith(newline) else text + newline for text in texts[:-1]]
    return empty.join([*lines, texts[-1]])


SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(kw_only=True, eq=False)
class Shakespeare(Text):
    """Tiny Shakespeare (Karpathy 2015): 1,115,394 characters of his plays, 65 different.

    Args:
        root: the folder that tinyshakespeare/input.txt is in, or is downloaded to.
        download: whether to download the file if it is missing.
    """

    root: str = "data"
    download: bool = True
    name = "shakespeare"

    def read_text_by_split(self) -> dict[str, Any]:
        """Return the plays, downloaded if they are missing."""
        file = Path(self.root).expanduser() / "tinyshakespeare" / "input.txt"
        download: Callable[[], Any] | None = None
        if self.download:
            download = partial(download_file, SHAKESPEARE_URL, SHAKESPEARE_SHA256, file)
        by_hand = f"the file {SHAKESPEARE_URL} into {file.parent}"
        ensure_downloaded(self.name, Path(self.root).expanduser(), [file], download, by_hand)
        return {"train": self.read_only_file(file)}


def download_file(url: str, sha256: str, file: Path) -> None:
    """Download a URL to a file atomically.

    Raises:
        ValueError: the content has another SHA-256.
    """
    with urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{url} has changed: its SHA-256 differs")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    os.replace(part, file)
