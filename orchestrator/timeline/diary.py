"""The timeline of a run in progress: what the driver did outside of steps, and parts that go into the file.

The run's reporter says what the driver does, and hands parts over; the file grows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.timeline.course_of_step import Phase
from orchestrator.timeline.events import TraceEvent
from orchestrator.timeline.part_of_run import Lanes, PartOfRun, part_events
from orchestrator.timeline.trace_file import TRACE_FILE, TraceFile, parts_until


class Timeline:
    """What is written into a run's `trace.json.gz`."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        """Begin the file, or go on behind its parts up to `resume_step`."""
        self.path = run_dir / TRACE_FILE
        self._lanes = Lanes()
        self._file = TraceFile(self.path, self._kept(resume_step) if resume_step else ())
        self._did: list[Phase] = []
        self._doing: tuple[str, float] | None = None

    def _kept(self, step: int) -> Iterator[list[TraceEvent]]:
        """The parts up to a step, one after another: all together they may be large."""
        for part in parts_until(self.path, step):
            for event in part:
                self._lanes.seen(event)
            yield part

    def doing(self, what: str | None) -> None:
        """Note what the driver does from now on; None: a phase of a step, which is noted by itself."""
        now = time.time()
        if self._doing is not None:
            self._did.append((self._doing[0], self._doing[1], now))
        self._doing = (what, now) if what else None

    def whole(self, part: PartOfRun) -> PartOfRun:
        """The part with what the driver did outside of its step."""
        did, self._did = self._did, []
        return replace(part, phases=sorted([*part.phases, *did], key=lambda phase: phase[1]))

    def write(self, part: PartOfRun) -> None:
        """Append a part to the file."""
        self._file.append(part_events(part, self._lanes))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
