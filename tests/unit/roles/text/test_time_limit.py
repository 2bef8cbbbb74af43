"""A deadline for code that does not end."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from roles.text.time_limit import time_limit


def test_code_that_does_not_end_is_ended() -> None:
    with pytest.raises(TimeoutError, match=r"it did not end within 0.05 s"), time_limit(0.05):
        while True:
            pass


def test_what_others_asked_of_the_alarm_stays() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with time_limit(600):
            time.sleep(0.08)
        until = time.monotonic() + 60
        while not heard and time.monotonic() < until:
            time.sleep(0.01)
        assert heard == [signal.SIGALRM]
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_thread_goes_on_without_one() -> None:
    done: list[int] = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.03)
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
