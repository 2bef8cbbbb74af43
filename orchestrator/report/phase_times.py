"""The phases of the current step: how long each took so far, and how long the latest steps let expect.

Phases as they begin and the metrics of finished steps flow in; a `PhaseTime` for each phase flows out.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A phase of the current step. Example: `PhaseTime("generate", 3.2, 4.1, running=True)`."""

    name: str
    spent: float
    """Seconds in this step so far."""
    expected: float
    """Mean seconds of the latest steps; NaN if there are none."""
    running: bool = False


class PhaseTimes:
    """The phases of a step in their order."""

    def __init__(self, steps: int) -> None:
        """`steps`: number of latest steps whose times are averaged."""
        self._latest: deque[Mapping[str, float]] = deque(maxlen=steps)
        self._order: list[str] = []
        self._spent: dict[str, float] = {}
        self._running, self._since = "", 0.0

    def begin(self, name: str) -> None:
        """A phase begins; the one before has ended. An empty name: none runs."""
        now = time.monotonic()
        if self._running:
            self._spent[self._running] = self._spent.get(self._running, 0.0) + now - self._since
        self._running, self._since = name, now
        if name and name not in self._order:
            self._order.append(name)

    def step(self, metrics: Mapping[str, float]) -> None:
        """The step has ended with these `metrics`; the next one begins without times."""
        self.begin("")
        self._spent = {}
        self._latest.append(metrics)

    def now(self) -> list[PhaseTime]:
        """The phases of the current step; none between steps."""
        if not self._running:
            return []
        return [self._time(name) for name in self._order]

    def _time(self, name: str) -> PhaseTime:
        running = name == self._running
        spent = self._spent.get(name, 0.0) + (time.monotonic() - self._since if running else 0.0)
        times = [metrics[key] for metrics in self._latest if (key := f"time/{name}_s") in metrics]
        return PhaseTime(name, spent, sum(times) / len(times) if times else math.nan, running)
