"""Signals that ask a run to save and exit.

They are Ctrl-C, SIGTERM, a cluster's SIGUSR2, SIGHUP when a terminal or an ssh connection closes,
and Ctrl-Break on Windows.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from genlab.errors import UserError

# Those that this system has.
STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2", "SIGBREAK")
    if hasattr(signal, name)
)


class TrainingInterrupted(UserError):
    """A signal ended the work, with everything saved.

    The exit code is the shell's own for that signal, 128 + its number.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal.Signals[name]


class SignalCatcher:
    """Context that records stop signals instead of acting on them; a second Ctrl-C interrupts.

    On leaving, a handler that was installed before, such as a job launcher's that requeues the job
    and exits, is called for each recorded signal: by then the run is saved. After an error it is
    not called, so that it cannot hide the error.

    SIGHUP stays ignored if it was ignored before, as under nohup.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.previous_handlers: dict[int, Any] = {}

    @property
    def first_signal_name(self) -> str | None:
        """The name of the first signal received, or None."""
        return signal.Signals(self.received[0]).name if self.received else None

    def __enter__(self) -> SignalCatcher:
        # Only the main thread may set handlers; a run in another thread is ended by its caller.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if not is_hangup_ignored(number):
                    self.previous_handlers[number] = signal.signal(number, self.record_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        if error is not None:
            return
        for number in self.received:
            handler = self.previous_handlers[number]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(number, None)

    def record_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal by recording it."""
        if number == signal.SIGINT and number in self.received:
            raise KeyboardInterrupt
        if number not in self.received:
            self.received.append(number)


def is_hangup_ignored(number: int) -> bool:
    """Whether a signal is SIGHUP and ignored: the user wants the work to outlive the terminal."""
    is_hangup = hasattr(signal, "SIGHUP") and number == signal.SIGHUP
    return is_hangup and signal.getsignal(number) is signal.SIG_IGN
