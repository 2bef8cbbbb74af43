"""What is drawn of a run at once: a step with all that has happened since the one before. Pure.

The driver's phases and the reports of all ranks flow in, events for Perfetto flow out: a process for each node, a
thread for each rank, and one for the driver; calls, what happened inside them, and for whom a rank waited in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.estimate.memory import GIB
from cluster.ranks.identity import Identity
from cluster.ranks.usage import BY_DRIVER, InnerSpan, RankUsage
from orchestrator.timeline.course_of_step import (
    THE_DRIVER,
    CourseOfStep,
    Phase,
    WorkedCall,
    idle_times,
)
from orchestrator.timeline.events import TraceEvent, drawn_counter, drawn_flow, drawn_span, named_lane

CURVE_POINTS = 300
"""Most points of a curve in a part; of neighbouring ones the highest stays."""
RATE_S = 1.0
"""Seconds over which tokens a second are counted."""
Lane = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PartOfRun:
    """A step, and what has happened since the part before it: start-up, evaluations, checkpoints."""

    step: int
    """The step; that of the part before, if no step has been done since."""
    began: float
    """Wall-clock seconds, as `ended`; both the same if there was no step."""
    ended: float
    phases: Sequence[Phase]
    waits: Sequence[InnerSpan]
    """The driver's waits."""
    ranks: Sequence[tuple[Identity, RankUsage]]

    @property
    def course(self) -> CourseOfStep:
        """The step's phases and calls."""
        calls = [
            WorkedCall(who.role, who.rank, method, began, ended, asked.at, asked.by or THE_DRIVER)
            for who, usage in self.ranks
            for began, ended, method, asked in usage.busy
        ]
        calls.sort(key=lambda call: call.ended)
        return CourseOfStep(self.step, self.began, self.ended, tuple(self.phases), tuple(calls))


@dataclass(slots=True)
class Lanes:
    """The numbers of processes and threads, by their names; those that are new must be named in the file."""

    processes: dict[str, int] = field(default_factory=dict)
    threads: dict[tuple[int, str], int] = field(default_factory=dict)
    flows: int = 0
    """Number of arrows so far."""
    fresh: list[TraceEvent] = field(default_factory=list)

    def process(self, name: str) -> int:
        """The number of a process."""
        if name not in self.processes:
            self.processes[name] = len(self.processes)
            self.fresh.append(named_lane("process_name", (self.processes[name], 0), name))
        return self.processes[name]

    def thread(self, process: str, name: str) -> Lane:
        """The numbers of a process and of one of its threads."""
        number = self.process(process)
        if (number, name) not in self.threads:
            self.threads[number, name] = sum(1 for other, _ in self.threads if other == number)
            self.fresh.append(named_lane("thread_name", (number, self.threads[number, name]), name))
        return number, self.threads[number, name]

    def seen(self, event: Mapping[str, Any]) -> None:
        """Note an event of a file that is continued."""
        if event["ph"] == "M" and event["name"] == "process_name":
            self.processes[event["args"]["name"]] = event["pid"]
        elif event["ph"] == "M" and event["name"] == "thread_name":
            self.threads[event["pid"], event["args"]["name"]] = event["tid"]
        elif event["ph"] == "s":
            self.flows = max(self.flows, event["id"])


def part_events(part: PartOfRun, lanes: Lanes) -> list[TraceEvent]:
    """The events of a part; the first one says which part it is."""
    facts = {"step": part.step, "began": part.began, "ended": part.ended}
    head = {"ph": "M", "name": "part", "pid": 0, "tid": 0, "args": facts}
    driver = lanes.thread("driver", THE_DRIVER)
    did = [("phase", InnerSpan(first, last, name, 0, {"step": part.step})) for name, first, last in part.phases]
    waited = [("wait", span) for span in part.waits]
    drawn = list(_nested([*did, *waited], lambda number: lanes.thread("driver", _beside(THE_DRIVER, number))))
    homes = {who.name: lanes.thread(f"node {who.node}", who.name) for who, _ in part.ranks}
    for who, usage in part.ranks:
        home = homes[who.name]
        for call in usage.busy:
            about = {"role": who.role, "rank": who.rank, "asked": call.asked.at, "by": call.asked.by or THE_DRIVER}
            drawn.append(drawn_span(f"{who.role} {call.method}", "call", home, call.began, call.ended, about))
        drawn += _inside(who, usage, lanes)
        drawn += _curves(who, usage, home[0])
    for name, idle in idle_times(part.course).items():
        drawn += [drawn_span(f"waits for {t.waits_for}", "idle", homes[name], t.began, t.ended, {}) for t in idle]
    drawn += _arrows(part, driver, homes, lanes)
    named, lanes.fresh = lanes.fresh, []
    return [head, *named, *drawn]


def _beside(name: str, number: int) -> str:
    """The name of a further lane of somebody."""
    return f"{name}, beside it {number}" if number else name


def _inside(who: Identity, usage: RankUsage, lanes: Lanes) -> Iterator[TraceEvent]:
    """What happened inside a rank's calls; what other threads did, on lanes of its own."""
    node, kinds = f"node {who.node}", [("inside", span) for span in usage.inner if "value" not in span.facts]
    home = lanes.thread(node, who.name)
    for kind, span in kinds:
        if span.thread == usage.thread:
            yield drawn_span(span.name, kind, home, span.began, span.ended, span.facts)
    others = [(kind, span) for kind, span in kinds if span.thread != usage.thread]
    yield from _nested(others, lambda number: lanes.thread(node, _beside(who.name, number + 1)))


def _nested(spans: Iterable[tuple[str, InnerSpan]], lane: Callable[[int], Lane]) -> Iterator[TraceEvent]:
    """Spans with their kinds, on as few lanes as needed so that on each of them a span lies in another or beside it."""
    open_until: list[list[float]] = []
    for kind, span in sorted(spans, key=lambda pair: (pair[1].began, -pair[1].ended)):
        for number in range(len(open_until) + 1):
            if number == len(open_until):
                open_until.append([])
            stack = open_until[number]
            while stack and stack[-1] <= span.began:
                stack.pop()
            if not stack or span.ended <= stack[-1]:
                stack.append(span.ended)
                yield drawn_span(span.name, kind, lane(number), span.began, span.ended, span.facts)
                break


def _arrows(part: PartOfRun, driver: Lane, homes: Mapping[str, Lane], lanes: Lanes) -> Iterator[TraceEvent]:
    """From who asked to the call; of a call that gives its answer in parts to the first one."""
    phases, first = part.phases, set[tuple[str, str, float, str]]()
    for who, usage in part.ranks:
        for call in usage.busy:
            by, key = call.asked.by, (who.name, call.method, call.asked.at, call.asked.by)
            source = driver if by == BY_DRIVER else homes.get(by)
            drawn = by != BY_DRIVER or any(began <= call.asked.at <= ended for _, began, ended in phases)
            if source is None or not drawn or key in first:
                continue
            first.add(key)
            lanes.flows += 1
            yield from drawn_flow(lanes.flows, call.method, source, call.asked.at, homes[who.name], call.began)


def _curves(who: Identity, usage: RankUsage, process: int) -> Iterator[TraceEvent]:
    counts: dict[str, list[tuple[float, float]]] = {}
    counts["host memory GiB"] = [(second, held / GIB) for second, held in usage.series.items()]
    if usage.cards is not None:
        samples = usage.cards.samples
        counts["GPU memory GiB"] = [(sample.at, sample.used_bytes / GIB) for sample in samples]
        counts["GPU utilisation"] = [(sample.at, sample.busy) for sample in samples if sample.busy is not None]
    for span in usage.inner:
        if "value" in span.facts:
            counts.setdefault(span.name, []).append((span.began, span.facts["value"]))
    for what, points in counts.items():
        yield from drawn_counter(f"{who.name} {what}", process, _fewer(points))
        if what.endswith("tokens"):
            yield from drawn_counter(f"{who.name} {what}/s", process, _rates(points))


def _fewer(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    each = -(-len(points) // CURVE_POINTS) or 1
    return [max(points[i : i + each], key=lambda point: point[1]) for i in range(0, len(points), each)]


def _rates(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The rise a second of a count, over `RATE_S` or longer."""
    found, since = [], points[0]
    for point in points[1:]:
        if point[0] - since[0] >= RATE_S:
            found.append((point[0], (point[1] - since[1]) / (point[0] - since[0])))
            since = point
    return found
