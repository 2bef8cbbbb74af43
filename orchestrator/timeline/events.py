"""Events of the Trace Event Format, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open. Pure.

Times in seconds flow in, plain dictionaries flow out: those of a plan and those of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MICRO = 1_000_000
"""Microseconds, the format's unit, in a second."""
TraceEvent = dict[str, Any]


def drawn_span(
    name: str, kind: str, lane: tuple[int, int], began: float, ended: float, facts: Mapping[str, Any]
) -> TraceEvent:
    """A span on a lane (process, thread). Whole microseconds, rounded in one direction, so that what lies in another
    span still does."""
    first, last = int(began * MICRO), int(ended * MICRO)
    times = {"ts": first, "dur": max(last - first, 0)}
    return {"ph": "X", "name": name, "cat": kind, "pid": lane[0], "tid": lane[1], **times, "args": dict(facts)}


def drawn_flow(number: int, name: str, source: tuple[int, int], at: float, target: tuple[int, int], to: float) -> Any:
    """An arrow from the span that runs at `at` on one lane to the span that begins at `to` on another: two events."""
    end = {"name": name, "cat": "flow", "id": number}
    yield {"ph": "s", **end, "pid": source[0], "tid": source[1], "ts": int(at * MICRO)}
    yield {"ph": "f", "bp": "e", **end, "pid": target[0], "tid": target[1], "ts": int(to * MICRO)}


def drawn_counter(name: str, process: int, series: Iterable[tuple[float, float]]) -> Iterator[TraceEvent]:
    """A curve: (second, number) of each of its points."""
    for at, number in series:
        yield {"ph": "C", "name": name, "pid": process, "tid": 0, "ts": int(at * MICRO), "args": {"value": number}}


def named_lane(what: str, lane: tuple[int, int], name: str) -> TraceEvent:
    """The name of a process (`process_name`) or of a thread (`thread_name`)."""
    return {"ph": "M", "name": what, "pid": lane[0], "tid": lane[1], "args": {"name": name}}
