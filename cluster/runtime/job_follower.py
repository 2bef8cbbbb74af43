"""A job's log, line by line until the job has ended, across broken connections.

What a cluster tells of a job (`Jobs`) flows in; its log and then how it ended flow out. Needs no Ray.
`cluster.runtime.jobs` is the real `Jobs`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from cluster.errors import ClusterError, ClusterUnreachable

RETRY_S = 1.0
LOST_S = 300.0
"""Seconds without a connection after which the log is given up; the job goes on."""

SUCCEEDED, STOPPED, FAILED = "SUCCEEDED", "STOPPED", "FAILED"
"""Ray's names of the final states of a job."""

STOPPED_CODE = 143
"""Exit code for a job that Ray has stopped (with SIGTERM): Ray reports none."""


@dataclass(frozen=True, slots=True)
class JobState:
    """State of a job."""

    status: str
    """PENDING, RUNNING, or one of the final states."""
    driver_code: int | None = None
    """Exit code of the job's command; None: it still runs, or never started."""
    message: str = ""
    """Ray's message about the job."""

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in (SUCCEEDED, STOPPED, FAILED)

    @property
    def exit_code(self) -> int:
        """Exit code of a job that has ended, as a shell reports it."""
        if self.status == STOPPED:
            return STOPPED_CODE
        if self.driver_code is None:
            return int(self.status != SUCCEEDED)
        return self.driver_code if self.driver_code >= 0 else 128 - self.driver_code  # ended by a signal


class Jobs(Protocol):
    """The jobs of a cluster; each method raises ClusterUnreachable where there is no answer."""

    def log(self, job: str) -> Iterator[str]:
        """The log from its beginning, in pieces as they come, until it ends."""

    def state(self, job: str) -> JobState:
        """The state of the job."""


class Follower:
    """Shows a job's log once, however often the connection breaks or the caller is interrupted."""

    def __init__(self, jobs: Jobs, job: str, show: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self._jobs = jobs
        self._job = job
        self._show = show
        self._tell = tell
        self._shown = 0
        """Characters of the log that were shown: each connection starts at the beginning of the log."""
        self._alive = time.monotonic()
        self._broken = False

    def until_end(self, deadline_s: float = math.inf) -> JobState:
        """Show the log until the job ends, and return its final state. ClusterError after LOST_S without a
        connection."""
        began = time.monotonic()
        self._heard()
        while time.monotonic() - began < deadline_s:
            try:
                state = self._jobs.state(self._job)  # before the log: if the job has ended by now, the log is complete
                self._show_log()
            except ClusterUnreachable as error:
                self._lost(error)
            else:
                self._heard()
                if state.ended:
                    return state
            time.sleep(RETRY_S)
        raise ClusterError(f"job {self._job} has not ended within {deadline_s:g} s")

    def _show_log(self) -> None:
        passed = 0
        for piece in self._jobs.log(self._job):
            new = piece[max(self._shown - passed, 0) :]
            passed += len(piece)
            if new:
                self._shown = passed
                self._heard()
                self._show(new)

    def _heard(self) -> None:
        self._alive, self._broken = time.monotonic(), False

    def _lost(self, error: ClusterUnreachable) -> None:
        if time.monotonic() - self._alive > LOST_S:
            raise ClusterError(f"no connection for {LOST_S:g} s: {error}") from error
        if not self._broken:
            self._tell(f"the connection broke; trying again for {LOST_S:g} s ({error})")
        self._broken = True
