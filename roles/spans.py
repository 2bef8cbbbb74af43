"""What a role does inside a call, with times: forward passes, optimizer steps, turns of an environment.

Roles record, their rank's process keeps, and the driver asks for it after each step, for the run's timeline. On a GPU
the times are those at which the host gave the work and went on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RecordedSpan = tuple[float, float, str, int, dict[str, Any]]
"""Begin and end in wall-clock seconds, name, thread, and what else is known; a count has its number as `value`."""
KEPT = 20_000
"""Most spans that are kept between two questions; the oldest go first."""
PAUSE_S = 0.05
"""Seconds between two counts of one name; those between them are left out."""

_recorded: deque[RecordedSpan] = deque(maxlen=KEPT)
_counted: dict[str, float] = {}


@contextmanager
def span(name: str, **facts: Any) -> Iterator[None]:
    """Context that is recorded as a span, also if it fails. `facts`: what else a reader wants to know of it."""
    began = time.time()
    try:
        yield
    finally:
        _recorded.append((began, time.time(), name, threading.get_ident(), facts))


def count(name: str, number: float) -> None:
    """Record how many of something there are now."""
    now = time.time()
    if not 0 <= now - _counted.get(name, 0.0) < PAUSE_S:
        _counted[name] = now
        _recorded.append((now, now, name, threading.get_ident(), {"value": number}))


def take_spans() -> list[RecordedSpan]:
    """What has been recorded since the last call."""
    return [_recorded.popleft() for _ in range(len(_recorded))]
