"""The options of datasets that say where a table of text is, and how it is cut into cells."""

from __future__ import annotations

from pathlib import Path

from genlab.data.table_files import DELIMITERS, MISSING_WORDS, TextFormat
from genlab.errors import UserError, did_you_mean
from genlab.untrusted.files import real_path


class TextTableReader:
    """Base of datasets with the options of a table; a subclass declares them as its own."""

    name: str
    path: str | None
    header: bool | None
    delimiter: str
    encoding: str | None
    comment: str | None
    skip_rows: int
    missing_values: tuple[str | float, ...] | None

    def require_file(self, usage: str) -> Path:
        """Return the table's file.

        Args:
            usage: what to type if it is not given.

        Raises:
            UserError: it is not given, or does not exist.
        """
        if not self.path:
            raise UserError(f"{self.name} needs its file: {usage}")
        file = Path(self.path).expanduser()
        if not file.exists():
            looked = real_path(file)
            raise UserError(f"dataset.path={self.path}: no such file (looked for {looked})")
        return file

    def make_text_format(self, *, allow_short_rows: bool = False) -> TextFormat:
        """Return the options that say how the text is cut into cells.

        Args:
            allow_short_rows: whether a row may lack its last cells.
        """
        if self.delimiter not in ("auto", *DELIMITERS) and len(self.delimiter) != 1:
            raise UserError(
                f"dataset.delimiter={self.delimiter}: it must be auto, {', '.join(DELIMITERS)}, or "
                f"one character{did_you_mean(self.delimiter, DELIMITERS)}"
            )
        return TextFormat(
            delimiter=self.delimiter,
            encoding=self.encoding,
            header=self.header,
            comment=self.comment or None,
            skip_rows=self.skip_rows,
            missing=self.missing_value_words(),
            allow_short_rows=allow_short_rows,
        )

    def missing_value_words(self) -> tuple[str, ...]:
        """Return the words of cells without a value."""
        if self.missing_values is None:
            return MISSING_WORDS
        return tuple(str(word).strip() for word in self.missing_values)
