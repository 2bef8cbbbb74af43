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
"""A connection that does not come back for so long is given up (the job goes on)."""

SUCCEEDED, STOPPED, FAILED = "SUCCEEDED", "STOPPED", "FAILED"
"""Ray's words for a job that has ended."""

STOPPED_CODE = 143
"""Ray tells no exit code of a job that it has stopped; it was ended by SIGTERM."""


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job stands."""

    status: str
    """PENDING, RUNNING, or how it ended."""
    driver_code: int | None = None
    """The exit code of its command; null: it still runs, or never did."""
    message: str = ""
    """What Ray says of it."""

    @property
    def ended(self) -> bool:
        """It will not go on."""
        return self.status in (SUCCEEDED, STOPPED, FAILED)

    @property
    def exit_code(self) -> int:
        """The exit code of a job that has ended, as a shell would tell it."""
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
        """How the job stands."""


class Follower:
    """Shows a job's log once, however often the connection breaks or the caller is interrupted."""

    def __init__(self, jobs: Jobs, job: str, show: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self._jobs = jobs
        self._job = job
        self._show = show
        self._tell = tell
        self._shown = 0
        """Characters of the log: each connection starts at its beginning."""
        self._alive = time.monotonic()
        self._broken = False

    def until_end(self, deadline_s: float = math.inf) -> JobState:
        """Show the log as it comes, and return how the job ended. ClusterError after LOST_S without a connection."""
        began = time.monotonic()
        self._heard()
        while time.monotonic() - began < deadline_s:
            try:
                state = self._jobs.state(self._job)  # asked first: what ended before the log is read has its whole log
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
