"""The terminal: the progress of a command while it works.

Work that may take long runs inside `Progress` or `track`. Nested ones are shown together, as in
"evaluating 2/9: sampling 300/500". A command that is quick shows nothing. On a terminal the
progress is one line at the bottom, which disappears; elsewhere it is a line every few seconds on
standard error.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

PIPE_WIDTH = 400  # columns of a line of progress that is not printed to a terminal
DEFAULT_WIDTH = 80  # columns of a terminal that does not tell its width

SHOW_AFTER_S = 3.0  # work that ends sooner shows nothing
REDRAW_INTERVAL_S = 0.2  # of the line on a terminal
# Between lines if standard error is not a terminal: in the first minute, and later.
LINE_INTERVALS_S = (5.0, 10.0)
FIRST_MINUTE_S = 60.0
LONG_DURATION_S = 48 * 3600.0  # a longer duration is shown in days
CLEAR_LINE = "\r\x1b[K"


# --- progress -------------------------------------------------------------------------------------


class Progress:
    """A piece of work, whose progress is shown on standard error while it takes long.

    Args:
        label: what is done: "reading headers", "sampling".
        total: how many units there are; None if that is unknown.
        unit: of the count, in the plural: "images".
        done: how many units were done before, as by a run that resumes.
    """

    def __init__(
        self, label: str, total: float | None = None, *, unit: str = "", done: float = 0
    ) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.done_before = done
        self.note = ""  # what else is shown, such as the losses of a training
        self.started = monotonic_seconds()
        self.advanced = self.started  # when a unit was finished last
        # when the first unit was finished, which is often the slowest, and `done` then
        self.first: tuple[float, float] | None = None

    def __enter__(self) -> Progress:
        self.started = self.advanced = monotonic_seconds()
        DISPLAY.start_showing(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        DISPLAY.stop_showing(self)

    def update(self, count: float = 1) -> None:
        """Count finished units."""
        self.done += count
        self.advanced = monotonic_seconds()
        if self.first is None:
            self.first = self.advanced, self.done

    def units_per_s(self) -> float | None:
        """Return the rate, without the first unit if there are others; None before the first.

        A unit that takes longer than the others lowers the rate while it runs.
        """
        if self.first is None:
            return None
        began, units = self.first[0], self.done - self.first[1]
        if units <= 0:
            began, units = self.started, self.first[1] - self.done_before
        seconds = max(self.advanced - began, 1e-9)
        if (monotonic_seconds() - self.advanced) * units > seconds:
            seconds = monotonic_seconds() - began
        return units / seconds

    def seconds_left(self) -> float | None:
        """Return the time that the rest takes at the present rate; None if it is unknown."""
        rate = self.units_per_s()
        if not rate or self.total is None:
            return None
        of_this_unit = min(monotonic_seconds() - self.advanced, 1 / rate)
        return max(0.0, (self.total - self.done) / rate - of_this_unit)

    def format_position(self) -> str:
        """Return "label 3/9", "label 3", or the label of work that is not counted."""
        if self.total is not None:
            return f"{self.label} {self.done:,.0f}/{self.total:,.0f}"
        return f"{self.label} {self.done:,.0f}" if self.done else self.label

    def format_status_line(self) -> str:
        """Return the position, the note, and the time that has passed and is left."""
        parts = [" ".join(filter(None, [self.format_position(), self.unit if self.done else ""]))]
        if self.note:
            parts.append(self.note)
        now = monotonic_seconds()
        left = self.seconds_left()
        if left is None:
            parts.append(f"{format_duration_as_h_mm_ss(now - self.started)} so far")
        else:
            parts.append(f"{format_duration_as_h_mm_ss(left)} left")
        return "  ".join(parts)

    def format_bar(self, width: int) -> str:
        """Return the line for a terminal of so many columns."""
        text = self.format_status_line()
        if not self.total:
            return cut_between_parts(text, width)
        room = width - len(text) - 1
        cells = min(30, room)
        if cells < 8:
            return cut_between_parts(text, width)
        filled = round(cells * min(1.0, self.done / self.total))
        return f"{'━' * filled}{'─' * (cells - filled)} {text}"


class CommandProgress(Progress):
    """The whole of a command, which is shown while nothing more specific is."""


def track(
    items: Iterable[Item], label: str, total: float | None = None, *, unit: str = ""
) -> Iterator[Item]:
    """Yield the items, and show how many of them are done; see `Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()


@contextmanager
def show_command_progress(label: str, *, is_main: bool = True) -> Iterator[None]:
    """Show that a command works, whatever it does, until the end of the context.

    Args:
        is_main: whether this process shows anything: rank 0 of a training.
    """
    DISPLAY.is_enabled = is_main and not os.environ.get("TQDM_DISABLE")
    streams = sys.stdout, sys.stderr
    try:
        if DISPLAY.is_enabled and is_open_terminal(sys.stderr):
            sys.stderr = LineClearingStream(sys.stderr)
            if is_open_terminal(sys.stdout):
                sys.stdout = LineClearingStream(sys.stdout)
        with CommandProgress(label):
            yield
    finally:
        sys.stdout, sys.stderr = streams


def print_above_progress(message: str) -> None:
    """Print a line for the user on standard error, above the progress."""
    with DISPLAY.lock:
        DISPLAY.clear_progress_line()
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


class ProgressDisplay:
    """Shows the innermost of the running pieces of work, from another thread.

    So it also moves while one unit of the work takes long.
    """

    def __init__(self) -> None:
        self.is_enabled = not os.environ.get("TQDM_DISABLE")
        self.forget_all_work()

    def forget_all_work(self) -> None:
        """Forget all work, as a forked process must: the thread and its lock are not in it."""
        self.lock = threading.RLock()
        self.running: list[Progress] = []
        self.thread: threading.Thread | None = None
        self.stop = threading.Event()
        self.last_line = 0.0  # when the last line was printed
        self.is_drawn = False  # whether the terminal's last line shows progress
        self.at_line_start = True  # of the terminal: otherwise somebody's line is incomplete

    def start_showing(self, progress: Progress) -> None:
        """Begin to show a piece of work."""
        with self.lock:
            if not self.running:
                self.last_line = progress.started
            self.running.append(progress)
            if self.is_enabled and self.thread is None:
                self.stop = threading.Event()
                self.thread = threading.Thread(
                    target=self.redraw_until_stopped,
                    args=(self.stop,),
                    name="progress",
                    daemon=True,
                )
                self.thread.start()

    def stop_showing(self, progress: Progress) -> None:
        """Stop showing a piece of work."""
        with self.lock:
            if progress in self.running:
                # with what runs inside it: an error leaves loops that nobody closes
                del self.running[self.running.index(progress) :]
            if self.running:
                return
            self.clear_progress_line()
            thread, self.thread = self.thread, None
            self.stop.set()
        if thread:
            thread.join()

    def redraw_until_stopped(self, stop: threading.Event) -> None:
        """Show the work until there is none."""
        while not stop.wait(REDRAW_INTERVAL_S):
            try:
                self.redraw_if_due()
            except (OSError, ValueError):  # standard error is closed
                return

    def redraw_if_due(self) -> None:
        """Show the work, if it has taken long enough, and the last line is old enough."""
        now = monotonic_seconds()
        with self.lock:
            if not self.running or now - self.running[0].started < SHOW_AFTER_S:
                return
            stream = sys.stderr
            if is_open_terminal(stream):
                if self.at_line_start:
                    width = shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns - 1
                    text = self.format_running_work(
                        lambda progress, room: progress.format_bar(room), width
                    )
                    write_past_line_clearing(stream, CLEAR_LINE + text[: max(width, 1)])
                    self.is_drawn = True
                return
            elapsed = now - self.running[0].started
            interval = LINE_INTERVALS_S[elapsed > FIRST_MINUTE_S]
            is_first = self.last_line <= self.running[0].started
            if now - self.last_line >= (SHOW_AFTER_S if is_first else interval):
                self.print_progress_line()

    def print_progress_line(self) -> None:
        """Print the progress as a line."""
        with self.lock:
            self.last_line = monotonic_seconds()
            text = self.format_running_work(
                lambda progress, room: progress.format_status_line(), PIPE_WIDTH
            )
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def format_running_work(self, show: Any, width: int) -> str:
        """Return the innermost work as `show` returns it, after the positions of the outer ones."""
        *outer, inner = self.running
        # the user knows the command
        outer = [progress for progress in outer if not isinstance(progress, CommandProgress)]
        prefix = "".join(f"{progress.format_position()}: " for progress in outer)
        return prefix + str(show(inner, max(width - len(prefix), 20)))

    def clear_progress_line(self) -> None:
        """Remove the progress from the terminal, so that something else can be printed."""
        if self.is_drawn:
            self.is_drawn = False
            write_past_line_clearing(sys.stderr, CLEAR_LINE)


class LineClearingStream:
    """A terminal's stream that removes the progress before something else is written."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        with DISPLAY.lock:
            DISPLAY.clear_progress_line()
            written = self.stream.write(text)
            if text:
                DISPLAY.at_line_start = text.endswith(("\n", "\r"))
            return written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)


def write_past_line_clearing(stream: Any, text: str) -> None:
    """Write progress to a terminal."""
    target = stream.stream if isinstance(stream, LineClearingStream) else stream
    if text.startswith(CLEAR_LINE):
        getattr(target, "write_with_sequences", target.write)(CLEAR_LINE)
    target.write(text.removeprefix(CLEAR_LINE))
    target.flush()


def is_open_terminal(stream: Any) -> bool:
    """Whether a stream is an open terminal, on which a line can be drawn again."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def monotonic_seconds() -> float:
    """Return the time that progress is measured by."""
    return time.monotonic()


DISPLAY = ProgressDisplay()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DISPLAY.forget_all_work)


def cut_between_parts(text: str, width: int) -> str:
    """Return the beginning of a line that fits, of whole parts: two spaces separate them.

    A part that takes more than a third of the line is cut instead of left out.
    """
    if len(text) <= width:
        return text
    whole = text[: width + 2].rpartition("  ")[0]
    return whole if len(whole) >= width * 2 // 3 else text[:width]


# --- durations ------------------------------------------------------------------------------------


def format_duration_as_h_mm_ss(seconds: float) -> str:
    """Return a duration as h:mm:ss, or in days if it is long."""
    if seconds >= LONG_DURATION_S:
        return describe_duration(seconds)
    s = int(seconds)
    return f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"


def describe_duration(seconds: float) -> str:
    """Return a duration in words, with one unit, as "20 seconds" or "3 hours"."""
    units = (("second", 1, 100), ("minute", 60, 100 * 60), ("hour", 3600, LONG_DURATION_S))
    for unit, size, limit in units:
        if seconds < limit:
            number = max(1, round(seconds / size))
            return f"{number} {unit}{'s' if number > 1 else ''}"
    days = round(seconds / 86400)
    return f"{days:,} days"
