"""SIGTERM and Ctrl-C: a request to end, which is raised as an exception in the driver.

Code that must not be interrupted holds it back (`hold` … `release`), for as long as the grace lasts. A second request
is not held back. One that Python drops, because it came inside a finalizer or a fork, is raised again. `ORDERS` is the
process's own; it listens from `listen` on.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cluster.errors import Terminated

ECHO_S = 1.0
"""Seconds within which a second signal counts as the same request: `timeout` sends it to the process and its group."""
AGAIN_S = 0.05
"""Seconds after which a request is raised again that came where Python drops exceptions."""
SIGNALS = {signal.SIGTERM: Terminated, signal.SIGINT: KeyboardInterrupt}


class Orders:
    """The requests to end that this process has received."""

    def __init__(self) -> None:
        self.told: type[KeyboardInterrupt] | None = None
        """The exception that the first request became; None before it."""
        self.grace_s = 0.0
        """Seconds that work after a request may take."""
        self._at = 0.0
        self._held = False

    def listen(self) -> None:
        """Handle the signals from now on (other libraries may have set their own handlers before)."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGALRM, self._over)
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
                signal.signal(number, self._hear)
        sys.unraisablehook = partial(self._dropped, sys.unraisablehook)

    def hold(self) -> None:
        """From now on, record a request; it is raised in `release`, or after the grace."""
        self._held = True

    def release(self) -> None:
        """Raise a request that was held back."""
        self._held = False
        if self.told is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise self.told

    @property
    def left_s(self) -> float:
        """Seconds that are left of the grace; infinite before a request."""
        return math.inf if self.told is None else max(self._at + self.grace_s - time.monotonic(), 0.0)

    def _hear(self, number: int, frame: Any) -> None:
        if self.told is not None and time.monotonic() < self._at + ECHO_S:
            return
        again = self.told is not None
        if not again:
            self.told, self._at = SIGNALS[signal.Signals(number)], time.monotonic()
        if again or not self._held or not self.grace_s:
            self._over(number, frame)
        os.write(2, f"\nending once what is under way is done, or in {self.grace_s:g} s (again: at once)\n".encode())
        signal.setitimer(signal.ITIMER_REAL, self.grace_s)

    def _dropped(self, others: Callable[[Any], Any], unraisable: Any) -> None:
        """What Python calls with an exception that nobody can catch."""
        if self.told is not None and issubclass(unraisable.exc_type, self.told):
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            others(unraisable)

    def _over(self, number: int, frame: Any) -> None:
        if self.told is not None:
            raise self.told


ORDERS = Orders()


@contextmanager
def unheard() -> Iterator[None]:
    """Context in which no signal interrupts."""
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
    """Context in which started processes block SIGTERM: a signal to the whole group reaches only this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
