"""Signals that ask a run to save and end: Ctrl-C, a terminal's or scheduler's SIGTERM, a cluster's SIGUSR2."""

from __future__ import annotations

import signal
import threading
from types import FrameType

ASKS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Signals:
    """While entered, remembers the first of `ASKS` in `name`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def name(self) -> str | None:
        return signal.Signals(self.number).name if self.number else None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self.receive) for s in ASKS}
        else:  # only the main thread may set handlers; a run in another thread is ended by its caller
            self.before = {}
        return self

    def __exit__(self, *error: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        handler = self.before.get(number)  # a job launcher's own handler requeues the job: it must still hear
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, frame)
