"""The progress of commands: no silence while they work, and nothing from quick ones."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from genlab import console
from genlab.console import (
    Progress,
    ProgressDisplay,
    describe_duration,
    show_command_progress,
    track,
)
from genlab.training import logger
from genlab.training.logger import TrainingProgress


class Clock:
    """A clock that a test moves; the display looks at it every REDRAW_INTERVAL_S."""

    def __init__(self, display: ProgressDisplay) -> None:
        self.now, self.display = 1000.0, display

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / console.REDRAW_INTERVAL_S)):
            self.now += console.REDRAW_INTERVAL_S
            self.display.redraw_if_due()


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """A display without a thread, and its clock."""
    display = ProgressDisplay()
    display.is_enabled = False  # starts no thread
    clock = Clock(display)
    monkeypatch.setattr(console, "DISPLAY", display)
    monkeypatch.setattr(console, "monotonic_seconds", clock)
    monkeypatch.setattr(logger, "monotonic_seconds", clock)
    yield clock
    assert not display.running, "the progress of something was not ended"


@pytest.fixture
def redirect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """Replace standard error by a stream, in the body of a test (pytest sets its own before)."""

    def replace(stream: io.StringIO | None = None) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream or io.StringIO())
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm")
        return sys.stderr

    return replace


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after a text."""
    lines = []
    for line in text.split("\n"):
        lines.append(line.rpartition(console.CLEAR_LINE)[2])
    return lines


def lines_of(stderr: io.StringIO) -> list[str]:
    return stderr.getvalue().splitlines()


# --- elsewhere than on a terminal -----------------------------------------------------------------


def test_quick_work_shows_nothing(clock, redirect):
    stderr = redirect()
    for _ in track(range(20), "reading", unit="files"):
        clock.pass_time(0.1)
    assert stderr.getvalue() == ""


def test_slow_work_shows_lines_with_the_time_left(clock, redirect):
    stderr = redirect()
    for _ in track(range(10), "reading headers", unit="images"):
        clock.pass_time(4)
    lines = lines_of(stderr)
    assert lines[0] == "reading headers 0/10  0:00:03 so far"
    assert lines[1] == "reading headers 1/10 images  0:00:32 left"
    assert len(lines) == 8


@pytest.mark.parametrize("seconds", [59, 3600])
def test_no_silence_is_longer_than_the_interval(clock, redirect, seconds):
    """Even while one unit of the work takes all the time."""
    stderr = redirect()
    silences, last, printed = [], clock.now, 0
    with Progress("fitting"):
        for _ in range(seconds):
            clock.pass_time(1)
            if len(stderr.getvalue()) > printed:
                silences.append(clock.now - last)
                last, printed = clock.now, len(stderr.getvalue())
    longest = console.LINE_INTERVALS_S[seconds > 60]
    assert max(silences) <= longest + 1 and clock.now - last <= longest


def test_nested_work_is_one_line(clock, redirect):
    stderr = redirect()
    with show_command_progress("genlab evaluate"):
        clock.pass_time(4)
        with Progress("measuring", 9) as metrics:
            metrics.update(2)
            for _ in track(range(3), "sampling", unit="batches"):
                clock.pass_time(5)
            clock.pass_time(5)
        clock.pass_time(5)
    lines = lines_of(stderr)
    assert lines[0] == "genlab evaluate  0:00:03 so far"
    assert lines[1] == "measuring 2/9: sampling 0/3  0:00:04 so far"
    assert lines[2].startswith("measuring 2/9: sampling 1/3 batches  0:00:0")
    assert lines[-1].startswith("genlab evaluate  0:00:2")
    assert all(a != b for a, b in pairwise(lines))


def test_an_error_ends_the_progress_of_abandoned_loops(clock, redirect):
    stderr = redirect()
    kept = []
    with pytest.raises(ValueError) as error, Progress("outer"):
        for item in track(range(3), "inner"):
            kept.append(item)
            raise ValueError
    assert error.traceback  # holds the frame of the loop
    clock.pass_time(20)
    assert stderr.getvalue() == "" and kept == [0]


@pytest.mark.parametrize("how", ["environment", "rank 1"])
def test_progress_can_be_disabled(how, monkeypatch):
    if how == "rank 1":
        monkeypatch.delenv("TQDM_DISABLE")
    with show_command_progress("genlab train", is_main=how != "rank 1"):
        assert not console.DISPLAY.is_enabled and console.DISPLAY.thread is None


# --- on a terminal --------------------------------------------------------------------------------


def test_a_terminal_shows_one_line_that_disappears(clock, redirect):
    terminal = redirect(Terminal())
    with show_command_progress("genlab sample"):
        for i in track(range(8), "drawing samples", unit="batches"):
            clock.pass_time(2)
            if i == 5:
                (line,) = screen(terminal.getvalue())
                assert line.startswith("━") and "drawing samples 5/8 batches" in line
                assert len(line) < 80
    assert screen(terminal.getvalue()) == [""]
    assert "\n" not in terminal.getvalue()


def test_messages_are_above_the_progress(clock, redirect, monkeypatch):
    terminal = redirect(Terminal())
    clock.display.is_enabled = True
    monkeypatch.setattr(clock.display, "thread", object())  # no thread of its own
    monkeypatch.delenv("TQDM_DISABLE")
    with show_command_progress("genlab sample"):
        clock.pass_time(5)
        print("step 10: note", file=sys.stderr)
        console.print_above_progress("second")
        clock.pass_time(1)
        print("incomplete", end="", file=sys.stderr)
        clock.pass_time(1)  # a part of a line is not overwritten
        print(" line", file=sys.stderr)
        monkeypatch.setattr(clock.display, "thread", None)
    assert screen(terminal.getvalue()) == ["step 10: note", "second", "incomplete line", ""]
    assert sys.stderr is terminal


# --- training -------------------------------------------------------------------------------------


def test_the_steps_of_a_training(clock, redirect):
    stderr = redirect()
    with TrainingProgress(0, 100) as progress:
        progress.items_per_step = 8
        clock.pass_time(9)
        assert lines_of(stderr)[-1] == "step 0/100  the first step has taken 0:00:08 so far"
        progress.update()
        progress.show_losses({"loss": 1.25})
        clock.pass_time(2)
        progress.update()
        clock.pass_time(2)
        progress.update()
        assert progress.format_status_line() == "step 3/100  0:03:14 left  4 items/s  loss 1.25"
        clock.pass_time(12)
        assert "this step has taken 0:00:12 so far" in progress.format_status_line()
        progress.time_limit_s = 30.0
        assert "0:00:30 left" in progress.format_status_line()
        progress.time_limit_s = 260_000.0
        progress.total = 10**6
        assert "3 days left" in progress.format_status_line()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "1 second"),
        (59, "59 seconds"),
        (200, "3 minutes"),
        (7300, "2 hours"),
        (260_000, "3 days"),
    ],
)
def test_durations_in_words(seconds, text):
    assert describe_duration(seconds) == text


# --- end to end -----------------------------------------------------------------------------------

# Everything takes ten times as long as the intervals, so that each part of a command speaks.
SMALL_INTERVALS = """
from genlab import console
console.SHOW_AFTER_S, console.REDRAW_INTERVAL_S = 0.05, 0.01
console.LINE_INTERVALS_S = (0.1, 0.1)
from genlab.cli.main import main
main()
"""


@pytest.fixture
def run_noisy(tmp_path: Path) -> Callable[..., list[tuple[float, str]]]:
    """Run a command with small intervals; return (seconds since the last output, line)."""

    def run(*arguments: str) -> list[tuple[float, str]]:
        environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
        process = subprocess.Popen(
            [sys.executable, "-c", SMALL_INTERVALS, *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        silences, last = [], None
        while select.select([process.stdout], [], [], 300)[0]:
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            now = time.monotonic()
            silences.append((now - (last or now), data.decode()))
            last = now
        assert process.wait(60) == 0, "".join(text for _, text in silences)
        return silences

    return run


@pytest.mark.slow
def test_no_command_is_silent(run_noisy):
    """From the first output on, no silence is longer than a busy machine explains."""
    small = ("model=rbm", "model.hidden=8", "trainer.steps=100", "device=cpu", "out=run")
    for command in (
        ("train", *small),
        ("evaluate", "run=run", "n=100", "features=[pixels]"),
        ("sample", "run=run", "n=400", "batch_size=100"),
    ):
        silences = run_noisy(*command)
        text = "".join(line for _, line in silences)
        assert "so far" in text or "left" in text
        assert max(seconds for seconds, _ in silences) < 2.5, silences


def test_a_line_without_room_ends_after_a_whole_part() -> None:
    line = "step 174/8,000  0:13:56 left  176 items/s  loss/discriminator 0.7348  D(x) 0.7404"
    assert console.cut_between_parts(line, 200) == line
    assert console.cut_between_parts(line, 75) == line.removesuffix("  D(x) 0.7404")
    assert console.cut_between_parts(line, len(line) - 13) == line.removesuffix("  D(x) 0.7404")
    long_part = "jobs 2/4 done  job 2 model=gan optimizer.lr=0.0002,trainer.batch_size=64"
    assert console.cut_between_parts(long_part, 40) == long_part[:40]
