"""Being told to stop: Ctrl-C and SIGTERM both unwind, so that what was half-written is removed on the way."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class Terminated(BaseException):
    """SIGTERM arrived. No Exception, so that nothing on the way takes it for a failure that it can handle."""


def stop_on_termination() -> None:
    """Turn SIGTERM into an exception, as Python does with Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)
