"""A deadline for Python code that may never end, such as the loops of a chat template."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError inside the block after so many seconds. Outside the main thread, which alone hears signals: none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it did not end within {seconds:g} s")

    started, before = time.monotonic(), signal.signal(signal.SIGALRM, over)
    others, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:  # an alarm that somebody else waits for
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - started), 0.001))
