"""SIGTERM and Ctrl-C: an order to end, which becomes an exception where the driver stands.

What must not be cut in two holds it back (`hold` … `release`), for as long as the grace lasts. A second order is not
held back. `ORDERS` is the process's own; it listens from `listen` on.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.errors import Terminated

ECHO_S = 1.0
"""Within so many seconds a signal is the same order once more: `timeout` sends it to the process and to its group."""
SIGNALS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


class Orders:
    """What has been heard so far."""

    def __init__(self) -> None:
        self.told: type[KeyboardInterrupt] | None = None
        """What the first order became; None before it."""
        self.grace_s = 0.0
        """For what is done after the order."""
        self._at = 0.0
        self._held = False

    def listen(self) -> None:
        """Hear the signals from now on (others may have put their own handlers in place)."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGALRM, self._over)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job ignores Ctrl-C
                signal.signal(number, self._hear)

    def hold(self) -> None:
        """From now on an order is noted, and becomes an exception in `release`, or after the grace."""
        self._held = True

    def release(self) -> None:
        """Raise what was held back."""
        self._held = False
        if self.told is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise self.told

    @property
    def left_s(self) -> float:
        """Seconds of the grace that are left; endless before an order."""
        return math.inf if self.told is None else max(self._at + self.grace_s - time.monotonic(), 0.0)

    def _hear(self, number: int, frame: Any) -> None:
        if self.told is not None and time.monotonic() < self._at + ECHO_S:
            return
        again = self.told is not None
        if not again:
            self.told, self._at = SIGNALS[signal.Signals(number)], time.monotonic()
        if again or not self._held or not self.grace_s:
            self._over(number, frame)
        os.write(2, f"\nending once this step can be saved, or in {self.grace_s:g} s (again: at once)\n".encode())
        signal.setitimer(signal.ITIMER_REAL, self.grace_s)

    def _over(self, number: int, frame: Any) -> None:
        if self.told is not None:
            raise self.told


ORDERS = Orders()


@contextmanager
def unheard() -> Iterator[None]:
    """Inside, no signal interrupts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (*SIGNALS, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def not_for_children() -> Iterator[None]:
    """Processes that are started inside do not hear SIGTERM, so that one for all of a group reaches us alone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
