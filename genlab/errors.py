"""What a user did that genlab cannot carry out: one clear line, exit code 2, no traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 240  # characters of a word in a line for a person


class UserError(ValueError):
    """A request that cannot be carried out as given; the message says what, where, and what would be right."""

    exit_code = 2


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known word nearest to `word`, or `""` where none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f" (did you mean '{near[0]}'?)" if near else ""


def printable(text: str) -> str:
    """Return a text on one line, without characters that a terminal would act on: a stranger's file may have them in a name."""
    text = text.encode("utf-8", "replace").decode()  # a file's name may hold bytes that are no text
    words = (
        word if len(word) <= LONGEST else f"{word[: LONGEST // 2]}…{word[-LONGEST // 4 :]}"
        for word in text.split()
    )
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(words))
