"""Errors that a user can fix: one clear line on the terminal, exit code 2, no traceback."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

MAX_WORD_CHARS = 240  # of a word in a line for a person
# PyTorch's messages
OUT_OF_MEMORY = re.compile(
    "allocate memory|out of memory|ALLOC_FAILED|size calculation overflowed|storage size.*overflow",
    re.IGNORECASE,
)


class UserError(ValueError):
    """A request that cannot be carried out; the message says what, where, and what to type."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known word, or "" if none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f" (did you mean '{near[0]}'?)" if near else ""


def make_printable(text: str) -> str:
    """Return a text on one line, without the control characters of untrusted files."""
    text = text.encode("utf-8", "replace").decode()  # a file name may contain invalid UTF-8
    words = (
        word
        if len(word) <= MAX_WORD_CHARS
        else f"{word[: MAX_WORD_CHARS // 2]}…{word[-MAX_WORD_CHARS // 4 :]}"
        for word in text.split()
    )
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(words))


def is_out_of_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory, of the CPU or a GPU, ran out."""
    if isinstance(error, RuntimeError):
        return bool(OUT_OF_MEMORY.search(str(error)))
    return isinstance(error, MemoryError)
