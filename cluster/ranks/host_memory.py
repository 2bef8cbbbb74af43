"""How much host memory processes hold; each `Worker` and the driver keep one sampler running.

A process is charged its *proportional set size* (PSS): its private pages, and of each page that n processes share
(libraries, Ray's object store) one n-th. PSS of several processes may be added without counting a page twice, which RSS
may not. Where the system offers no PSS, RSS stands in.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

SAMPLING_INTERVAL_S = 1.0
SAMPLING_COST_SHARE = 0.02
"""Largest share of time spent on sampling: for a PSS the kernel walks all pages, tens of ms with many GiB."""

FRESH_DRAINS = 3
"""The first drains take a sample: all has been used by then, and a run of seconds may end before the thread's next."""

TELL_S = 1.0
"""Seconds that the answer of a process' last call has to leave it."""

MemorySeries = dict[int, int]
"""Wall-clock second → bytes."""


class MemorySampler:
    """Samples a process and its descendants about once a second, in a daemon thread."""

    def __init__(self, pid: int | None = None) -> None:
        self._pid = pid or os.getpid()
        self._series: MemorySeries = {}
        self._fresh = FRESH_DRAINS
        self._stopped = threading.Event()
        self.sample()
        threading.Thread(target=self._run, name="memory-sampler", daemon=True).start()

    def drain(self) -> MemorySeries:
        """The samples since the last drain, and the one before them; only the first `FRESH_DRAINS` take a new one."""
        if self._fresh:
            self._fresh -= 1
            self.sample()
        drained = self._series
        self._series = dict([max(drained.items())])
        return drained

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _run(self) -> None:
        pause = SAMPLING_INTERVAL_S
        while not self._stopped.wait(pause):
            began = time.thread_time()
            self.sample()
            pause = max(SAMPLING_INTERVAL_S, (time.thread_time() - began) / SAMPLING_COST_SHARE)

    def sample(self) -> None:
        """Take one sample now; takes tens of ms if the processes hold much memory."""
        second, held = int(time.time()), sum(map(held_bytes, tree(self._pid)))
        series = self._series
        series[second] = max(held, series.get(second, 0))


def tree(pid: int) -> list[psutil.Process]:
    """The processes `pid` and its living descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants; those that have already ended, or are another user's, are skipped."""
    with suppress(psutil.NoSuchProcess):
        for process in tree(pid):
            with suppress(psutil.Error):
                process.kill()


def kill_children() -> None:
    """Kill all descendants of this process."""
    for process in tree(os.getpid())[1:]:
        with suppress(psutil.Error):
            process.kill()


def end_soon() -> None:
    """End this process and its descendants, once the answer of its last call has left it."""
    time.sleep(TELL_S)
    try:
        kill_children()
    finally:
        os._exit(1)


def held_bytes(process: psutil.Process) -> int:
    """PSS of a process (RSS where the system has no PSS, or it is another user's); 0 if it has ended."""
    try:
        memory = process.memory_full_info()
        return int(memory.pss if hasattr(memory, "pss") else memory.rss)
    except psutil.AccessDenied:
        with suppress(psutil.Error):
            return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        pass
    return 0


def peak_of_sum(series: Sequence[Mapping[int, int]]) -> int:
    """Largest sum over all series in one second; a series keeps its last value until its next one."""
    current = [0] * len(series)
    peak = 0
    for second in sorted({second for one in series for second in one}):
        current = [one.get(second, last) for one, last in zip(series, current, strict=True)]
        peak = max(peak, sum(current))
    return peak
