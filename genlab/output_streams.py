"""Standard output and standard error that cannot fail.

A training must not end because what it reports to is gone, full, or cannot show a character. So
text that cannot be written is kept for a log file, and a character that the encoding lacks is
replaced by a readable one. Imports no torch.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

MAX_HELD_CHARS = 2**16  # of lost output, until there is a log file
READABLE = "genlab.readable"  # the name of the error handler of codecs
# All but the ends of lines and tabs; C1, and the marks that change the direction of writing, too.
CONTROL_CHARACTER = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
REPLACEMENTS = {
    "±": "+-", "×": "x", "÷": "/", "−": "-", "–": "-", "—": "-", "…": "...", "·": ".", "•": "*",
    "→": "->", "←": "<-", "↑": "^", "↓": "v", "⇒": "=>", "≥": ">=", "≤": "<=", "≠": "!=", "≈": "~",
    "∞": "inf", "√": "sqrt", "∑": "sum", "∏": "prod", "∂": "d", "∇": "grad", "∈": "in",
    "‖": "||", "∥": "||", "½": "1/2", "¼": "1/4", "¾": "3/4", "µ": "u", "°": "deg", "¬": "not",
    "‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"', "━": "=", "─": "-", "│": "|",
    "′": "'", "›": ">", "⏎": "<LF>",
    "█": "#", "✓": "yes", "✗": "no", "⊙": "*", "⋅": ".", "⊗": "*", "∘": " o ", "∝": "~",
    "∫": "int", "⋯": "...", "⁻": "^-", "⌈": "[", "⌉": "]", "⌊": "[", "⌋": "]", "⟨": "<", "⟩": ">",
    "。": ".", "\N{REPLACEMENT CHARACTER}": "?", "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip  # one kind a line


# --- characters -----------------------------------------------------------------------------------


def replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return readable text for the characters that an encoding lacks, as codecs ask for it."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(ascii_form, error.object[error.start : error.end])), error.end


def ascii_form(character: str) -> str:
    """Return a character in ASCII: a similar sign, the name of a Greek letter, or a code.

    Letters of names, such as é in a path, get their code, so that no other name is shown.
    """
    if character.isascii():
        return character
    if character in REPLACEMENTS:
        return REPLACEMENTS[character]
    name = unicodedata.name(character, "")
    if name.startswith("GREEK"):
        letter = name.partition(" LETTER ")[2].partition(" ")[0].lower()
        return letter.capitalize() if "CAPITAL" in name else letter
    if name.startswith("BOX DRAWINGS"):
        return "+"
    if name.startswith("COMBINING"):
        return ""
    plain = unicodedata.normalize("NFKD", character)
    if plain.isascii() and not plain.isspace():
        if name.startswith(("SUPERSCRIPT", "SUBSCRIPT")):
            return f"{'^' if name.startswith('SUPER') else '_'}{plain}"
        if not character.isalpha() or name.startswith("MODIFIER"):
            return plain
    return character.encode("ascii", "backslashreplace").decode()


codecs.register_error(READABLE, replace_unencodable)


# --- lost output ----------------------------------------------------------------------------------


class LostOutput:
    """Text that could not be written: held in memory until there is a log file for it."""

    def __init__(self) -> None:
        self.held = ""
        self.path: Path | None = None

    def add(self, text: str) -> None:
        """Keep a text."""
        self.held = (self.held + text)[-MAX_HELD_CHARS:]
        if self.path and self.held:
            with suppress(OSError), open(self.path, "a", encoding="utf-8", errors="replace") as log:
                log.write(self.held)
                self.held = ""


LOST_OUTPUT = LostOutput()


def keep_lost_output_in(path: Path) -> None:
    """From now on, append output that cannot be written to a log file."""
    LOST_OUTPUT.path = path
    LOST_OUTPUT.add("")  # what was lost before


# --- streams --------------------------------------------------------------------------------------


class SafeStream:
    """A standard stream whose writes never fail.

    After a failed write the stream is not used again: the text of that write and all later text
    become lost output.

    Args:
        stream: the stream; None if it was closed before Python started.
        name: of the stream, for messages: "standard error".
    """

    def __init__(self, stream: TextIO | None, name: str) -> None:
        self.stream, self.name = stream, name
        self.error: str | None = None  # why a write failed
        self.is_reader_gone = False  # the program at the other end of the pipe has ended
        self.unflushed = ""
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self.lacking = None if is_utf8(encoding) else encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, with visible signs for control characters and what the encoding lacks.

        A name or a message from another person's file could otherwise control the terminal.
        """
        return self.write_with_sequences(CONTROL_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", text))

    def write_with_sequences(self, text: str) -> int:
        """Write a text that may have escape sequences, which a terminal obeys."""
        if self.stream is None or self.error:
            LOST_OUTPUT.add(text)
            return len(text)
        shown = text
        if self.lacking and not text.isascii():
            shown = text.encode(self.lacking, READABLE).decode(self.lacking)
        self.unflushed += text
        try:
            self.write_encodable(shown)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.record_failure(error)
            return len(text)
        if "\n" in text:  # so that an error belongs to the lines that caused it
            self.flush()
        return len(text)

    def write_encodable(self, text: str) -> None:
        """Write a text whose only unencodable characters may be halves, from names of files."""
        assert self.stream is not None
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, READABLE).decode(encoding))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream, if it still works."""
        if self.stream is None or self.error:
            return
        try:
            self.stream.flush()
            self.unflushed = ""
        except (OSError, ValueError) as error:
            self.record_failure(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal that still works."""
        try:
            return self.stream is not None and not self.error and self.stream.isatty()
        except ValueError:  # closed
            return False

    def record_failure(self, error: Exception) -> None:
        """Give the stream up, and keep what it did not write."""
        self.error = str(getattr(error, "strerror", None) or error)
        self.is_reader_gone = isinstance(error, BrokenPipeError)
        LOST_OUTPUT.add(f"({self.name} failed: {self.error}; what it did not write follows)\n")
        LOST_OUTPUT.add(self.unflushed)
        self.unflushed = ""
        # what is left in its buffer must not fail once more when Python ends
        with suppress(OSError, ValueError, AttributeError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, self.stream.fileno())  # type: ignore[union-attr]
            os.close(handle)


def is_utf8(encoding: str) -> bool:
    """Whether an encoding has all characters."""
    try:
        return codecs.lookup(encoding).name in ("utf-8", "utf-16", "utf-32")
    except LookupError:
        return False


@contextmanager
def use_safe_streams() -> Iterator[tuple[SafeStream, SafeStream]]:
    """Context in which sys.stdout and sys.stderr cannot fail; yields both."""
    reserve_standard_descriptors()
    before = sys.stdout, sys.stderr
    safe = (
        before[0]
        if isinstance(before[0], SafeStream)
        else SafeStream(before[0], "standard output"),
        before[1] if isinstance(before[1], SafeStream) else SafeStream(before[1], "standard error"),
    )
    sys.stdout, sys.stderr = safe
    try:
        yield safe
    finally:
        for stream in safe:
            stream.flush()
        sys.stdout, sys.stderr = before
        if not isinstance(before[0], SafeStream):
            LOST_OUTPUT.held, LOST_OUTPUT.path = "", None


def make_safe(stream: Any, name: str) -> SafeStream:
    """Return a stream whose writes do not fail: the stream itself, if it is one."""
    return stream if isinstance(stream, SafeStream) else SafeStream(stream, name)


def reserve_standard_descriptors() -> None:
    """Open descriptors 0 to 2 where they are closed.

    Otherwise the next file to be opened, such as a checkpoint, would get one of them, and receive
    whatever a library writes to standard error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
