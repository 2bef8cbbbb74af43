"""The last resort of a driver that hangs in the system, on a disk that does not answer: no exception reaches it there.

What it does, and how long that may take, flow in. If it takes longer, the process says so and ends, with all that it
has started: nothing else could be written either.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

from cluster.ranks.host_memory import kill_children
from cluster.ranks.process_state import frames_of, innermost

CHECKED_S = 1.0
"""Seconds between two looks at what is under way."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Work on a disk that is under way."""

    seconds: float
    doing: str
    thread: int = field(default_factory=threading.get_ident)
    began: float = field(default_factory=time.monotonic)


_UNDER_WAY: set[_Work] = set()


@contextmanager
def at_most(seconds: float, doing: str) -> Iterator[None]:
    """Context for work on a disk that must end within `seconds`. `doing`: in words that follow "is"."""
    _begin_to_watch()
    work = _Work(seconds, doing)
    _UNDER_WAY.add(work)
    try:
        yield
    finally:
        _UNDER_WAY.discard(work)


@cache
def _begin_to_watch() -> None:
    threading.Thread(target=_watch, name="last-resort", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(CHECKED_S)
        for work in tuple(_UNDER_WAY):
            if time.monotonic() > work.began + work.seconds:
                _end(work)


def _end(work: _Work) -> None:
    """End this process, after a word on the terminal: the error under way, if there is one, and what hangs."""
    at = innermost(frames_of(sys._current_frames().get(work.thread)))
    error = sys._current_exceptions().get(work.thread)
    first = error[1] if isinstance(error, tuple) else error  # a tuple before Python 3.12
    who = f"the driver (process {os.getpid()} on {socket.gethostname()})"
    told = [
        *(str(first).splitlines() if first is not None else []),
        f"{who} is {work.doing} for more than {work.seconds:g} s, at {at}",
        "the disk of run_dir does not answer; go on with --resume once it does",
    ]
    os.write(2, "\n  ".join(["error: the run failed", *told]).encode(errors="backslashreplace") + b"\n")
    with suppress(Exception):  # whatever happens, this process ends
        kill_children()
    os._exit(1)
