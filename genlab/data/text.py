"""Text as tokens: the characters or the bytes of a file, in windows of one length."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.request import urlopen

import torch
from annotated_types import Ge
from torch import Tensor

from genlab.data.dataset import Dataset, Split
from genlab.data.shuffling import Address
from genlab.data.torchvision_sets import ensure
from genlab.errors import UserError
from genlab.spec import Fraction, Spec


@dataclass
class Windows(Split):
    """A text x (N,), whose items are windows of `length` tokens, one every `stride` tokens."""

    length: int = 1
    stride: int = 1

    def __len__(self) -> int:
        return max(0, (len(self.x) - self.length) // self.stride + 1)


@dataclass(kw_only=True, eq=False)
class Text(Dataset):
    """A text's first part to train on, then the validation part, then the test part.

    A training item is a window that starts at any token; batches take them in a shuffled order. Held-out windows follow
    each other and overlap by one token, so that each token but the first is predicted once; what does not fill a window at
    the end is left out.

    Args:
        path: the file. None: the help topics of Python's language reference, which come with Python (0.5 MB).
        unit: what a token is: one of the characters that the text has, or a byte of the file.
        length: tokens in an item.
        validation: share of the text held out.
        test: share held out after that; None: the validation text is the test text too.
    """

    path: str | None = None
    unit: Literal["characters", "bytes"] = "characters"
    length: Annotated[int, Ge(2)] = 65
    validation: Fraction = 0.1
    test: Fraction | None = None
    name = "text"

    def __post_init__(self) -> None:
        raw = self.read()
        tokens, spec = (
            as_bytes(raw, self.length)
            if self.unit == "bytes"
            else as_characters(self.text(raw), self.length)
        )
        ends = [
            int(len(tokens) * (1 - self.validation - (self.test or 0))),
            int(len(tokens) * (1 - (self.test or 0))),
        ]
        if ends[0] < self.length:
            raise UserError(
                f"{self.name} has {max(0, ends[0]):,} {self.unit} to train on, and a window takes {self.length}; "
                "set a smaller dataset.length, dataset.validation or dataset.test"
            )
        train, validation, test = tokens.tensor_split(ends)
        splits = {"train": Windows(train, length=self.length)}
        for split, part in {
            "validation": validation,
            "test": validation if self.test is None else test,
        }.items():
            splits[split] = Windows(part, length=self.length, stride=self.length - 1)
        short = f"dataset.validation={self.validation:g} and dataset.test={self.test} leave it less than dataset.length"
        self.hold(spec, splits, missing=dict.fromkeys(("validation", "test"), short))
        self.lines.append(
            f"{len(tokens):,} {self.unit}, {spec.vocab} different; {self.length} in an item"
        )
        if self.test is None and self.validation:
            self.lines.append("the validation text is the test text too (dataset.test=null)")

    def read(self) -> bytes:
        """Return the bytes of the text."""
        if self.path is None:
            from pydoc_data.topics import topics

            return "\n".join(topics[name] for name in sorted(topics)).encode()
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise UserError(
                f"dataset.path={self.path}: there is no such file (looked for {file.resolve()})"
            )
        self.sources = [file]
        return file.read_bytes()

    def text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"dataset.path={self.path} is no text in UTF-8 ({error.reason}); set dataset.unit=bytes"
            ) from error

    def arrays(self, split: str) -> tuple[Tensor, None]:
        """Return the raw items, all windows (N, length) of the split, on the CPU."""
        windows = self._held(split)
        return windows.x.unfold(0, windows.length, windows.stride), None

    def _raw(
        self, split: str, addresses: Iterator[Address], device: torch.device
    ) -> Iterator[tuple[int, int, Tensor, None]]:
        windows = self.splits[split]
        text, _ = self._on(split, device)
        offsets = torch.arange(windows.length, device=device)
        for k, shard, index in addresses:
            yield k, shard, text[index[:, None] * windows.stride + offsets].long(), None


def as_bytes(raw: bytes, length: int) -> tuple[Tensor, Spec]:
    """Return the bytes as tokens uint8 (N,), and the Spec of windows of them."""
    tokens = (
        torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        if raw
        else torch.empty(0, dtype=torch.uint8)
    )
    return tokens, Spec(shape=(length,), kind="tokens", levels=0, vocab=256)


def as_characters(text: str, length: int) -> tuple[Tensor, Spec]:
    """Return the characters' places in the alphabet of those that the text has, int32 (N,), and the Spec."""
    symbols = "".join(sorted(set(text)))
    spec = Spec(shape=(length,), kind="tokens", levels=0, vocab=len(symbols), symbols=symbols)
    return torch.tensor(spec.to_tokens(text), dtype=torch.int32), spec


SHAKESPEARE = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(kw_only=True, eq=False)
class Shakespeare(Text):
    """Tiny Shakespeare (Karpathy 2015): 1,115,394 characters of his plays, 65 different.

    Args:
        root: the folder that holds tinyshakespeare/input.txt, or will.
        download: whether to download it where it is missing.
    """

    root: str = "data"
    download: bool = True
    name = "shakespeare"

    def read(self) -> bytes:
        """Return the bytes of the plays, downloaded where they are not there yet."""
        file = Path(self.root) / "tinyshakespeare" / "input.txt"
        fetch = (lambda: download(SHAKESPEARE, SHAKESPEARE_SHA256, file)) if self.download else None
        ensure(
            self.name, Path(self.root), [file], fetch, f"the file {SHAKESPEARE} into {file.parent}"
        )
        self.sources = [file]
        return file.read_bytes()


def download(url: str, sha256: str, file: Path) -> None:
    """Write what is at an address to a file, whole or not at all.

    Raises:
        ValueError: it is not what it should be.
    """
    with urlopen(url, timeout=60) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{url} is not the file that it was: its SHA-256 differs")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_bytes(data)
    os.replace(part, file)
