"""What a rank is doing, as it says itself: its method, where it is in it, and the collectives that it has begun."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

from cluster.ranks.process_state import frames_of, innermost


@dataclass(frozen=True, slots=True)
class Status:
    """What a rank is doing."""

    pid: int
    method: str | None
    """Name of the running method; None if the rank is idle."""
    seconds: float
    """Seconds for which it has been running."""
    stack: list[str]
    """Frames of the running method, outermost first: `file:line function`."""
    collectives: int | None = None
    """Number of collectives that the rank has begun with its peers; None if it has none."""
    raylet: int = 0
    """Process id of Ray's own process on the node; 0 if Ray does not say it."""

    @property
    def busy(self) -> bool:
        """Whether a method is running."""
        return self.method is not None

    def __str__(self) -> str:
        if not self.busy:
            return f"is idle for {self.seconds:.1f} s (pid {self.pid})"
        return f"is in {self.method} for {self.seconds:.1f} s (pid {self.pid}), at {innermost(self.stack)}"


def status_of(method: str | None, since: float, thread: int | None) -> Status:
    """The status of this process, whose thread `thread` runs `method` since a time of the monotonic clock."""
    frame = sys._current_frames()[thread] if thread is not None else None
    raylet = int(os.environ.get("RAY_RAYLET_PID", 0))
    return Status(os.getpid(), method, time.monotonic() - since, frames_of(frame), collectives_begun(), raylet)


def collectives_begun() -> int | None:
    """Number of collectives that this process has begun, over all groups of torch; None if it is in none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    groups = list(torch.distributed.distributed_c10d._world.pg_map)
    try:
        return sum(int(group._get_sequence_number_for_group()) for group in groups)
    except RuntimeError:  # a backend that does not count
        return None
