"""Writes the events of a step as a file that Perfetto (https://ui.perfetto.dev) and chrome://tracing open.

Events and the plan flow in; JSON of the Trace Event Format flows out: a process for each node, a thread for each card
(without cards: for each rank), and one process for the step's phases.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.estimate.simulation import Course, Event
from cluster.placement.plan import Plan, Slot
from orchestrator.timeline.events import drawn_span, named_lane

MOST = 100_000
"""Most events on cards; if there are more, consecutive events of one name are drawn as one."""
DRIVER = -1
"""Process number of the phases."""


def write_trace(path: Path, course: Course, made: Plan) -> None:
    """Write the trace of a step to `path`."""
    path.write_text(json.dumps({"traceEvents": list(trace_events(course, made))}) + "\n", encoding="utf-8")


def trace_events(course: Course, made: Plan) -> Iterator[dict[str, Any]]:
    """The trace events of the whole step."""
    lanes = {slot: slot.gpus or (place,) for place, slot in enumerate(made.slots)}
    yield from _names(made, lanes)
    begin = 0.0
    for phase, end in course.ends.items():
        if end > begin:
            yield drawn_span(phase, "plan", (DRIVER, 0), begin, end, {})
        begin = end
    slots = {role: made.of(role) for role in made.roles}
    many = sum(1 if event.rank is not None else len(slots[event.role]) for event in course.events) > MOST
    for event in _joined(course.events) if many else course.events:
        for slot in slots[event.role] if event.rank is None else [slots[event.role][event.rank]]:
            for lane in lanes[slot]:
                args = {"role": slot.role, "rank": slot.rank}
                name = f"{event.role} {event.name}"
                yield drawn_span(name, "plan", (slot.node, lane), event.begin, event.end, args)


def _joined(events: Sequence[Event]) -> Iterable[Event]:
    """Join consecutive events of one role and name, from the first one's beginning to the last one's end."""
    found: dict[tuple[str, int | None, str], Event] = {}
    for event in events:
        key = event.role, event.rank, event.name
        first = found.get(key, event)
        found[key] = Event(*key, min(first.begin, event.begin), max(first.end, event.end))
    return found.values()


def _names(made: Plan, lanes: dict[Slot, tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    yield named_lane("process_name", (DRIVER, 0), "step")
    yield named_lane("thread_name", (DRIVER, 0), "phases")
    for node, pool in enumerate(made.pools):
        yield named_lane("process_name", (node, 0), f"node {node} {pool}")
    named = set()
    for slot, own in lanes.items():
        for lane in own:
            if (slot.node, lane) not in named:
                named.add((slot.node, lane))
                name = f"GPU {lane}" if slot.gpus else f"{slot.role} {slot.rank}"
                yield named_lane("thread_name", (slot.node, lane), name)
