"""Text files: find them in a folder, decode them, and name what is wrong with a file."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from genlab.data.summary import LeftOut
from genlab.errors import UserError, did_you_mean, make_printable

BYTE_ORDER_MARK = "\ufeff"
# The longer marks first: that of UTF-32 starts with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The first bytes of files that hold text, but not as text.
SIGNATURES = (
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"BZh", "compressed (bzip2)"),
    (b"\xfd7zXZ\x00", "compressed (xz)"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)"),
    (b"PK\x03\x04", "a ZIP archive, as .docx, .odt and .epub files are"),
    (b"%PDF", "a PDF file"),
    (b"{\\rtf", "an RTF file"),
    (b"\xd0\xcf\x11\xe0", "an old Microsoft Office file"),
)
BINARY = "binary data, not a text"
ENCODINGS = (
    *("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "ascii", "latin-1", "iso-8859-15"),
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp437", "cp850", "cp866", "koi8-r", "mac-roman"),
    *("shift_jis", "euc-jp", "euc-kr", "gb18030", "gbk", "big5"),
)
SAMPLE_BYTES = 1 << 20  # of a file, from which its encoding is guessed
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


# --- finding files --------------------------------------------------------------------------------


def find_text_files(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the files in and below a folder, numbers in their names sorted as numbers.

    Hidden files and empty ones are counted in `left_out`, and so are linked folders.
    """
    files = []
    for path in sorted(
        folder.rglob("*"), key=lambda path: natural_sort_key(path.relative_to(folder))
    ):
        parts, name = path.relative_to(folder).parts, str(path.relative_to(folder))
        if any(part.startswith(".") for part in parts):
            if path.is_file() and not path.name.startswith(".DS_"):
                left_out.add("hidden", name)
        elif path.is_dir():
            if path.is_symlink():
                left_out.add("a link to a folder", name)
        elif not path.is_file():
            left_out.add("not a file, or a broken link", name)
        elif not path.stat().st_size:
            left_out.add("empty", name)
        else:
            files.append(path)
    return files


def natural_sort_key(path: Path) -> list[list[tuple[int, str]]]:
    """Return a sort key of a relative path: chapter_9 comes before chapter_10."""
    return [
        [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", part)]
        for part in path.parts
    ]


def split_from_path_name(path: Path) -> str | None:
    """Return the split that a relative path names, as test.txt or wiki.valid.tokens.

    None if it names none, or several.
    """
    words = {*re.split(r"[._\-\s]", path.name.lower()), path.parts[0].lower()}
    found = [split for split, names in SPLIT_WORDS.items() if words & set(names)]
    return found[0] if len(found) == 1 else None


def group_files_by_split(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split if every name states one, train among them; else {}."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        split = split_from_path_name(file.relative_to(folder))
        if split is None:
            return {}
        groups.setdefault(split, []).append(file)
    return groups if "train" in groups and len(groups) > 1 else {}


# --- decoding -------------------------------------------------------------------------------------


@dataclass
class TextReader:
    """Decodes files to text, and counts what it changes.

    Args:
        encoding: a name of Python's codecs.
        normalize_newlines: read CR LF and CR as LF, and drop byte-order marks.
    """

    encoding: str
    normalize_newlines: bool
    changes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        try:
            is_known = codecs.lookup(self.encoding)._is_text_encoding
        except LookupError:
            is_known = False
        if not is_known:
            near = did_you_mean(self.encoding, ENCODINGS)
            raise UserError(
                f"dataset.encoding={make_printable(self.encoding)}: no such encoding{near}; "
                f"known are {', '.join(ENCODINGS)}"
            )

    def decode(self, data: bytes) -> str:
        """Return the text of a file's bytes.

        Raises:
            UnreadableTextError: the bytes are not a text in this encoding.
        """
        is_unicode = self.encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))
        if not is_unicode and (kind := describe_binary_data(data)):
            raise UnreadableTextError(
                kind, find_first_zero_byte(data) if kind == BINARY else None, None
            )
        try:
            text = data.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise UnreadableTextError(
                f"not {self.encoding}", error.start, guess_encoding(data, self.encoding)
            ) from error
        if "\0" in text:
            guess = guess_encoding(data, self.encoding)
            raise UnreadableTextError(f"not {self.encoding}", find_first_zero_byte(data), guess)
        return self.normalize_line_ends(text) if self.normalize_newlines else text

    def normalize_line_ends(self, text: str) -> str:
        """Return a text without byte-order marks, its line ends as LF."""
        pairs = text.count("\r\n")
        self.changes["CR LF"] += pairs
        self.changes["CR"] += text.count("\r") - pairs
        self.changes["byte-order mark"] += text.count(BYTE_ORDER_MARK)
        return text.replace(BYTE_ORDER_MARK, "").replace("\r\n", "\n").replace("\r", "\n")

    def change_notes(self) -> list[str]:
        """Return one sentence for each kind of change."""
        names = {"CR LF": "Windows line ends (CR LF)", "CR": "line ends CR"}
        notes = [
            f"{self.changes[key]:,} {name} are read as LF"
            for key, name in names.items()
            if self.changes[key]
        ]
        if marks := self.changes["byte-order mark"]:
            notes.append(f"{marks:,} byte-order mark{'s' if marks > 1 else ''} (U+FEFF) left out")
        return notes


class UnreadableTextError(Exception):
    """A file is not a text in the encoding that was asked for.

    Attributes:
        kind: what it is, as "not utf-8" or "compressed (gzip)".
        position: of the first byte that does not fit; None if the whole file is of another kind.
        guess: the likely encoding; None without a guess.
    """

    def __init__(self, kind: str, position: int | None, guess: str | None) -> None:
        super().__init__(kind)
        self.kind, self.position, self.guess = kind, position, guess

    def explain(self, data: bytes) -> str:
        """Return the problem and its remedy, for a message about one file."""
        if self.position is None:
            unpack = "unpack it" if self.kind.startswith("compressed") else "save it as plain text"
            return f"is {self.kind}; {unpack} first"
        line = 1 + data.count(b"\n", 0, self.position)
        where = f"byte 0x{data[self.position]:02X} at position {self.position:,} (line {line:,})"
        text = f"is {self.kind}: {where}"
        if self.guess == self.kind.removeprefix("not "):
            return f"{text}; the rest is {self.guess}, so a part of the file is damaged"
        if self.kind == BINARY:
            return text
        if self.guess:
            return f"{text}; it is likely {self.guess}: set dataset.encoding={self.guess}"
        return f"{text}; set dataset.encoding= to the encoding that it was saved with"


def find_first_zero_byte(data: bytes) -> int | None:
    """Return the position of the first zero byte, None without one."""
    position = data.find(b"\0")
    return None if position < 0 else position


def describe_binary_data(data: bytes) -> str:
    """Return what a file is if it is not a text, as "a PDF file"; "" for a text."""
    for signature, kind in SIGNATURES:
        if data.startswith(signature):
            return kind
    has_mark = any(data.startswith(mark) for mark, _ in BYTE_ORDER_MARKS)
    if b"\0" in data and not has_mark and not detect_utf16_without_bom(data):
        return BINARY
    return ""


def detect_utf16_without_bom(data: bytes) -> str:
    """Return utf-16-le or utf-16-be if every other byte is mostly zero, else ""."""
    sample = data[:SAMPLE_BYTES]
    half = len(sample) // 2
    if half < 2:
        return ""
    even, odd = sample[: 2 * half : 2].count(0) / half, sample[1 : 2 * half : 2].count(0) / half
    if odd > 0.4 and even < 0.05:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 and odd < 0.05 else ""


def guess_encoding(data: bytes, wrong: str) -> str | None:
    """Return the likely encoding of bytes that are not valid in the encoding `wrong`.

    It is `wrong` itself if nearly all of its characters are valid. Without a byte-order mark the
    guess rests on which decoding gives letters of one script.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark) and encoding != wrong:
            return encoding
    if encoding := detect_utf16_without_bom(data):
        return encoding
    sample = data[:SAMPLE_BYTES]
    for encoding in dict.fromkeys((wrong, "utf-8")):
        text = sample.decode(encoding, errors="replace")
        damaged = text.count("\N{REPLACEMENT CHARACTER}")
        valid = sum(c > "\x7f" for c in text) - damaged
        if valid > 9 * damaged:
            return encoding
    scores = {encoding: score_encoding_by_script(sample, encoding) for encoding in SCRIPTS}
    best = max(scores, key=lambda encoding: scores[encoding])
    if scores[best] > MIN_SCRIPT_SCORE:
        return best
    is_windows = re.search(rb"[\x80-\x9f]", sample)
    return "cp1252" if is_windows and decode_or_none(sample, "cp1252") else "latin-1"


def decode_or_none(data: bytes, encoding: str) -> str | None:
    """Return the text of bytes, whose last character may be cut; None if it is invalid."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        return decoder.decode(data)
    except UnicodeDecodeError:
        return None


# Characters that are frequent in a script, and their fraction of its non-ASCII text. Lower-case
# letters tell the Cyrillic encodings apart.
CYRILLIC = ("".join(map(chr, range(ord("а"), ord("я") + 1))), 0.9)
KANA = ("".join(map(chr, range(ord("ぁ"), ord("ヿ") + 1))), 0.5)
HANGUL = ("이다는에의을를가은하고지로한도사어서리기나인아그시자해라니수있대정", 0.5)
CHINESE = (
    "的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你，。",
    0.3,
)
SCRIPTS = {
    "cp1251": CYRILLIC,
    "koi8-r": CYRILLIC,
    "cp866": CYRILLIC,
    "shift_jis": KANA,
    "euc-jp": KANA,
    "euc-kr": HANGUL,
    "gb18030": CHINESE,
    "big5": CHINESE,
}
MIN_SCRIPT_SCORE = 0.5
MIN_FOREIGN_LETTERS = 8  # different ones; a few accented letters are not another script
MIN_HIGH_BYTES = 0.3  # of the bytes without spaces: Western texts have fewer, these scripts more


def score_encoding_by_script(data: bytes, encoding: str) -> float:
    """Return how well bytes fit an encoding: 1 if its frequent characters are as frequent."""
    high, letters = len(re.findall(rb"[\x80-\xff]", data)), len(re.findall(rb"\S", data))
    text = decode_or_none(data, encoding)
    if text is None or high < MIN_HIGH_BYTES * letters:
        return 0.0
    frequent, expected = SCRIPTS[encoding]
    foreign = Counter(char for char in text if char > "\x7f")
    if len(foreign) < MIN_FOREIGN_LETTERS:
        return 0.0
    return sum(foreign[char] for char in set(frequent)) / max(1, foreign.total()) / expected


def describe_decomposed_accents(text: str) -> str:
    """Return a sentence about letters that are written as a letter and an accent (NFD), or ""."""
    if unicodedata.is_normalized("NFC", text):
        return ""
    accents = sum(map(text.count, {c for c in set(text) if unicodedata.combining(c)}))
    if not accents:
        return ""
    return (
        f"{accents:,} accents are symbols of their own (Unicode form NFD): é is e and an accent; "
        "save the text in form NFC to make them one symbol"
    )


def format_suffix_counts(files: list[Path]) -> str:
    """Return how many files have which suffix, the most frequent first, as "9 .txt, 1 .md"."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(5))
