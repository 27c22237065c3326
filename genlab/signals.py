"""Signals that ask a run to save and end: Ctrl-C, a terminal's or scheduler's SIGTERM, a cluster's SIGUSR2."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from genlab.errors import UserError

ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(UserError):
    """A signal ended the work, with everything saved; the exit code is the shell's own for that signal."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal.Signals[name]


class Signals:
    """While entered, remembers which of `ASKS` came, and `name` is the first; a second Ctrl-C interrupts at once.

    A handler that was set before, such as a job launcher's that has the scheduler start the job again and exits, hears of
    its signal on leaving: by then the run is saved. An error on the way is not covered up by it.
    """

    def __init__(self) -> None:
        self.heard: list[int] = []

    @property
    def name(self) -> str | None:
        return signal.Signals(self.heard[0]).name if self.heard else None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self.receive) for s in ASKS}
        else:  # only the main thread may set handlers; a run in another thread is ended by its caller
            self.before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)
        for number in self.heard if error[0] is None else ():
            handler = self.before[number]
            if callable(handler) and handler is not signal.default_int_handler:
                handler(number, None)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in self.heard:
            raise KeyboardInterrupt
        if number not in self.heard:
            self.heard.append(number)
