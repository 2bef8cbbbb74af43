"""The timeline of a run in progress: what the driver did outside of steps, and parts that go into the file.

The run's reporter says what the driver does, and hands parts over; the file grows. None of its errors ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from orchestrator.timeline.course_of_step import Phase
from orchestrator.timeline.events import TraceEvent
from orchestrator.timeline.part_of_run import Lanes, PartOfRun, part_events
from orchestrator.timeline.trace_file import TRACE_FILE, TraceFile, parts_until

DAMAGED = "damaged"
"""Word in the name of a file that could not be read to its end, behind `trace.json.gz`."""


class Timeline:
    """What is written into a run's `trace.json.gz`. The first error is told, and nothing is written from then on."""

    def __init__(self, run_dir: Path, resume_step: int, tell: Callable[[str], None]) -> None:
        """Begin the file, or go on behind its parts up to `resume_step`, as far as they can be read.

        tell: shows the user a line; called from other threads too.
        """
        self.path, self._tell = run_dir / TRACE_FILE, tell
        self._lanes = Lanes()
        self._file: TraceFile | None = None
        self._did: list[Phase] = []
        self._doing: tuple[str, float] | None = None
        with self._guarded():
            self._file = TraceFile(self.path, self._kept(resume_step) if resume_step else ())

    def _kept(self, step: int) -> Iterator[list[TraceEvent]]:
        """The parts up to a step, one after another: all together they may be large."""
        last = 0
        try:
            for part in parts_until(self.path, step):
                for event in part:
                    self._lanes.seen(event)
                yield part
                last = part[0]["args"]["step"]
        except Exception as error:
            aside = self.path.with_name(f"{TRACE_FILE}.{DAMAGED}")
            self.path.replace(aside)
            self._tell(
                f"the timeline goes on behind step {last}: the rest could not be read and is in {aside} ({error})"
            )

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
        with self._guarded():
            if self._file is not None:
                self._file.append(part_events(part, self._lanes))

    def close(self) -> None:
        """Close the file."""
        with self._guarded():
            if self._file is not None:
                self._file.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Context whose error is told, and ends the timeline alone."""
        try:
            yield
        except Exception as error:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
                self._file = None
            self._tell(
                f"{self.path} could not be written ({str(error) or type(error).__name__}); the run goes on without it"
            )
