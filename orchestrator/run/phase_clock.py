"""Wall-clock seconds of a step by phase, and the share of the step in which no role was working.

The keys are those of `orchestrator.metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Interval = tuple[float, float]
"""(begin, end) in wall-clock seconds."""


@dataclass(slots=True)
class Clock:
    """The clock of one step. `announce` is called with each phase when it begins."""

    announce: Callable[[str], None]
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    """When `metrics` was asked for; 0 before."""
    seconds: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[str, Interval]] = field(default_factory=list)
    """(phase, its interval), in order."""

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Context whose duration counts as `phase`."""
        self.announce(phase)
        at, began = time.time(), time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
            self.spans.append((phase, (at, time.time())))

    def metrics(self, busy: Iterable[Interval]) -> dict[str, float]:
        """The metrics `time/…_s` at the end of the step; `busy`: when any rank was running a method."""
        self.ended = time.time()
        step = self.ended - self.began
        phases = {f"time/{phase}_s": seconds for phase, seconds in self.seconds.items()}
        return {**phases, "time/step_s": step, "time/driver_s": step - covered(busy, self.began, self.ended)}


def covered(intervals: Iterable[Interval], began: float, ended: float) -> float:
    """Seconds of `began … ended` that lie in at least one of the intervals."""
    total, reached = 0.0, began
    for first, last in sorted(intervals):
        first, last = max(first, reached), min(last, ended)
        if last > first:
            total += last - first
            reached = last
    return total
