"""Text as tokens: the characters or bytes of a file, in windows of one length."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.request import urlopen

import torch
from annotated_types import Ge
from torch import Tensor

from genlab.data.dataset import Dataset, Split
from genlab.data.shuffling import ShardIndex
from genlab.data.torchvision_sets import ensure_downloaded
from genlab.errors import UserError
from genlab.spec import DataSpec, Fraction

DOWNLOAD_TIMEOUT_S = 60


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

    Args:
        path: the file. None: the help topics of Python's language reference, which ship with
            Python (0.5 MB).
        unit: a token is one of the characters of the text, or a byte of the file.
        length: tokens in an item.
        validation: fraction of the text held out.
        test: fraction held out after that; None uses the validation text as test text too.
    """

    path: str | None = None
    unit: Literal["characters", "bytes"] = "characters"
    length: Annotated[int, Ge(2)] = 65
    validation: Fraction = 0.1
    test: Fraction | None = None
    name = "text"

    def __post_init__(self) -> None:
        data = self.read()
        if self.unit == "bytes":
            tokens, spec = tokenize_bytes(data, self.length)
        else:
            tokens, spec = tokenize_characters(self.decode(data), self.length)
        ends = [
            int(len(tokens) * (1 - self.validation - (self.test or 0))),
            int(len(tokens) * (1 - (self.test or 0))),
        ]
        if ends[0] < self.length:
            raise UserError(
                f"{self.name} has {max(0, ends[0]):,} {self.unit} to train on, but a window has "
                f"{self.length}; set a smaller dataset.length, dataset.validation or dataset.test"
            )
        train, validation, test = tokens.tensor_split(ends)
        if self.test is None:
            test = validation
        stride = self.length - 1
        splits: dict[str, Split] = {
            "train": TextWindows(train, length=self.length),
            "validation": TextWindows(validation, length=self.length, stride=stride),
            "test": TextWindows(test, length=self.length, stride=stride),
        }
        hint = (
            f"dataset.validation={self.validation:g} and dataset.test={self.test} leave less than "
            "dataset.length tokens there"
        )
        self.set_splits(spec, splits, hints=dict.fromkeys(("validation", "test"), hint))
        self.report_lines.append(
            f"{len(tokens):,} {self.unit}, {spec.vocab} different; {self.length} in an item"
        )
        if self.test is None and self.validation:
            self.report_lines.append("the validation text is the test text too (dataset.test=null)")

    def read(self) -> bytes:
        """Return the bytes of the text."""
        if self.path is None:
            from pydoc_data.topics import topics

            return "\n".join(topics[name] for name in sorted(topics)).encode()
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(f"dataset.path={self.path}: no such file (looked for {file.resolve()})")
        self.source_files = [file]
        return file.read_bytes()

    def decode(self, data: bytes) -> str:
        """Return the text of UTF-8 bytes.

        Raises:
            UserError: it is not UTF-8.
        """
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"dataset.path={self.path} is not a text in UTF-8 ({error.reason}); "
                "set dataset.unit=bytes"
            ) from error

    def raw_arrays(self, split: str) -> tuple[Tensor, None]:
        """Return the raw items, all windows (N, length) of the split, on the CPU."""
        windows = self._nonempty_split(split)
        assert isinstance(windows, TextWindows)
        return windows.x.unfold(0, windows.length, windows.stride), None

    def _raw_batches(
        self, split: str, shards: Iterator[ShardIndex], device: torch.device
    ) -> Iterator[tuple[int, int, Tensor, None]]:
        windows = self.splits[split]
        assert isinstance(windows, TextWindows)
        text, _ = self._tensors_on(split, device)
        offsets = torch.arange(windows.length, device=device)
        for k, shard, index in shards:
            yield k, shard, text[index[:, None] * windows.stride + offsets].long(), None


def tokenize_bytes(data: bytes, length: int) -> tuple[Tensor, DataSpec]:
    """Return the bytes as tokens uint8 (N,), and the DataSpec of windows of them."""
    tokens = torch.empty(0, dtype=torch.uint8)
    if data:
        tokens = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return tokens, DataSpec(shape=(length,), kind="tokens", levels=0, vocab=256)


def tokenize_characters(text: str, length: int) -> tuple[Tensor, DataSpec]:
    """Return the characters' positions int32 (N,) in the sorted alphabet, and the DataSpec."""
    symbols = "".join(sorted(set(text)))
    spec = DataSpec(shape=(length,), kind="tokens", levels=0, vocab=len(symbols), symbols=symbols)
    return torch.tensor(spec.to_tokens(text), dtype=torch.int32), spec


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

    def read(self) -> bytes:
        """Return the bytes of the plays, downloaded if they are missing."""
        file = Path(self.root) / "tinyshakespeare" / "input.txt"
        download: Callable[[], Any] | None = None
        if self.download:
            download = partial(download_file, SHAKESPEARE_URL, SHAKESPEARE_SHA256, file)
        by_hand = f"the file {SHAKESPEARE_URL} into {file.parent}"
        ensure_downloaded(self.name, Path(self.root), [file], download, by_hand)
        self.source_files = [file]
        return file.read_bytes()


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
