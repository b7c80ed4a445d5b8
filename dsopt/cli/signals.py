"""Being told to stop: Ctrl-C and SIGTERM both unwind, so that what was half-written is removed on the way. Once is enough."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

_SECONDS_TO_UNWIND = 5.0
"""After a signal, in which another one does not disturb what is being removed. Later it counts: something may hang."""


class Terminated(BaseException):
    """SIGTERM arrived. No Exception, so that nothing on the way takes it for a failure that it can handle."""


class _Stop:
    """The handler of both signals."""

    def __init__(self) -> None:
        self.signals: list[signal.Signals] = []
        self._since = -_SECONDS_TO_UNWIND

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._since >= _SECONDS_TO_UNWIND:
            self._since = now
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated


_stop = _Stop()


def stop_on_termination() -> None:
    """Turn SIGTERM into an exception, as Python does with Ctrl-C, and both only once. What ignores Ctrl-C goes on ignoring it."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGTERM or signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, _stop)
            _stop.signals.append(number)


def ignore_signals() -> None:
    """Let no signal disturb what is said last. Does nothing where `stop_on_termination` was not called."""
    for number in _stop.signals:
        signal.signal(number, signal.SIG_IGN)


def end_at_once(code: int) -> None:
    """Let a signal end the process with a code, and say nothing more: only the end of the interpreter is left."""
    for number in _stop.signals:
        signal.signal(number, lambda number, frame: os._exit(code))
