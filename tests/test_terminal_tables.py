"""Tables in the terminal: widths, wrapping, and numbers rounded with their errors."""

from __future__ import annotations

import sys

import pytest

from genlab import tables
from genlab.tables import (
    format_table,
    format_to_error_digits,
    format_with_error,
    terminal_width,
    use_nonbreaking_spaces,
)

PATH = "/a/long/path/" + "x" * 60


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (97.9365, 0.2803, "97.94 ± 0.28"),
        (97.9365, 0.0996, "97.94 ± 0.10"),
        (1085.996, 12.3, "1,086 ± 12"),
        (12345, 1234, "12,300 ± 1,200"),
        (0.0121, 0.0008, "0.01210 ± 0.00080"),
        (-0.00202, 0.0082, "-0.0020 ± 0.0082"),
        (23.6583, 1e-9, "23.6583000 ± 1e-09"),
        (1e-9, 1e-10, "1e-09 ± 1e-10"),
        (0.62, 0.0, "0.62 ± 0"),
        (3576704, None, "3,576,704"),
        (999.96, None, "1,000"),
        (0.015837, None, "0.01584"),
        (0.0, None, "0"),
        (float("nan"), None, "nan"),
        (3.2, float("nan"), "3.2 ± nan"),
    ],
)
def test_value_has_the_digits_of_its_error(value, error, text):
    assert format_with_error(value, error) == text
    assert format_to_error_digits(value, error) == text.partition(" ±")[0]


@pytest.mark.parametrize(
    ("columns", "width"), [("40", 80), ("80", 80), ("133", 133), (None, 100), ("0", 100)]
)
def test_width_is_that_of_the_terminal_or_100(columns, width, monkeypatch):
    """A pipe has 100 columns, and a terminal at least 80."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == width


def test_long_text_is_wrapped_between_words():
    lines = format_table(["job", "value", "options"], [["1", "0.5", "model.width=16 " * 9]], 60)
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).count("model.width=16") == 9
    assert lines[1].split() == ["job", "value", "options"]


def test_words_are_never_broken():
    """A path without room is below its row; in a column of short words only that cell is."""
    header = ["job", "state", "options", "run"]
    rows = [[str(i), "done", "seed=1 lr=0.1", f"{PATH}{i}"] for i in range(3)]
    lines = format_table(header, rows, 80)
    assert [line.strip() for line in lines if PATH in line] == [f"run: {PATH}{i}" for i in range(3)]
    assert " 2    done   seed=1 lr=0.1" in lines
    rows = [["free", "62 GB", f"at {PATH}"], ["step", "1 ms", "measured: " + "block of steps " * 5]]
    lines = format_table(["quantity", "value", "source"], rows, 80)
    assert any(line.strip() == PATH for line in lines)
    assert "measured: block of steps" in "\n".join(lines)
    assert max(len(line) for line in lines if PATH not in line) <= 80


def test_unbreakable_text_stays_on_one_line():
    command = f"genlab sample run={PATH}"
    rows = [[use_nonbreaking_spaces(command), "draw samples from a run's model " * 2]]
    lines = format_table(["command", "description"], rows, 80)
    assert any(command in line for line in lines)


def test_numbers_are_right_and_remarks_take_the_room_that_is_left():
    """A remark without room for it is below its row; a heading is a rule."""
    rows = ["Cost", ["a", "1,000", "exact"], ["b", "7.5", "estimate of " + "many words " * 9]]
    lines = format_table(["metric", "value", ""], rows, 40)
    assert lines[2].startswith(" Cost ─") and "─" * 30 not in lines[2]
    assert lines[3] == " a       1,000  exact" and lines[4].startswith(
        " b         7.5  estimate of"
    )
    assert max(map(len, lines)) <= 40
    narrow = format_table(["metric", "value", ""], [["a" * 30, "1", "x " * 30]], 40)
    assert narrow[4].startswith("     x x")


def test_wide_characters_count_twice():
    lines = format_table(["データ", "n"], [["年齢", "1"], ["ab", "22"]], 80)
    assert lines[3:5] == [" 年齢     1", " ab      22"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_message_is_wrapped_between_words_on_a_terminal_only(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    text = " ".join(["data: digits:", *["1,437 train,"] * 10])
    tables.print_message_on_stderr(text)
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines) > 1) == is_terminal
    assert max(map(len, lines)) <= 80 or not is_terminal
    assert " ".join(" ".join(lines).split()) == text
